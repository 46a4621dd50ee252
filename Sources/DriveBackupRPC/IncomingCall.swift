internal import DriveBackupWire

/// A request that has arrived whole and is to be handled.
struct IncomingCall: Equatable {
    var stream: UInt32
    var method: String
    var metadata: [RPCMetadata]
    /// When the caller stops waiting, in nanoseconds of the transport's clock.
    var deadline: Int64?
    var request: [UInt8]
}

extension Frames.Call {
    /// A CALL's payload, with metadata whose keys are such; throws the status that the caller gets otherwise.
    init(checking payload: [UInt8]) throws(RPCStatus) {
        do throws(WireError) {
            self = try Self.decode(payload)
        } catch {
            throw RPCStatus(.invalidArgument, "The CALL cannot be decoded: \(error.message).")
        }
        if let wrong = metadata.first(where: { !RPCMetadata.isValid(key: $0.key) }) {
            throw RPCStatus(
                .invalidArgument,
                "\"\(wrong.key)\" is no key of metadata: it may have lower-case letters, digits, '-', '_', '.'."
            )
        }
    }
}
