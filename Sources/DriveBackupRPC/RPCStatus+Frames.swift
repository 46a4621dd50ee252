internal import DriveBackupWire

extension RPCStatus {
    /// What a STATUS or GOAWAY of the peer says. A code that we do not know is `unknown`, as in gRPC.
    init(_ frame: Frames.Status) {
        self.init(
            RPCCode(rawValue: Int(frame.code)) ?? .unknown, frame.message,
            details: frame.details.map { RPCDetail(type: $0.type, value: $0.value) },
            metadata: frame.metadata.map { RPCMetadata(key: $0.key, value: $0.value) })
    }

    /// The status as a message, without what cannot be said on the wire.
    var frame: Frames.Status {
        var frame = Frames.Status()
        frame.code = UInt32(code.rawValue)
        frame.message = message.replacing("\0", with: "\u{FFFD}")
        frame.details = details.filter { !$0.type.contains("\0") }.map { detail in
            var result = Frames.Detail()
            result.type = detail.type
            result.value = detail.value
            return result
        }
        frame.metadata = metadata.filter { RPCMetadata.isValid(key: $0.key) }.map(\.frame)
        return frame
    }

    /// The encoded status, at most `limit` bytes long: metadata, then details, then the end of the message go
    /// if there is no room for them.
    func encoded(limit: Int) -> [UInt8] {
        var frame = frame
        while true {
            // `frame` has no NUL, so that it can be encoded; and a code alone says enough.
            let bytes = (try? frame.encode()) ?? Self.bare(code)
            if bytes.count <= limit { return bytes }
            if !frame.metadata.isEmpty {
                frame.metadata = []
            } else if !frame.details.isEmpty {
                frame.details = []
            } else if !frame.message.isEmpty {
                frame.message = String(frame.message.prefix(frame.message.count / 2))
            } else {
                return bytes
            }
        }
    }

    private static func bare(_ code: RPCCode) -> [UInt8] {
        var frame = Frames.Status()
        frame.code = UInt32(code.rawValue)
        // It has no string, the only thing that cannot be encoded.
        return (try? frame.encode()) ?? []
    }
}

extension RPCMetadata {
    var frame: Frames.Metadata {
        var result = Frames.Metadata()
        result.key = key
        result.value = value
        return result
    }
}
