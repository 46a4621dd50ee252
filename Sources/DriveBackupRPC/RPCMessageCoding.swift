internal import DriveBackupWire

extension WireMessage {
    /// The encoded message to be sent, or why it cannot be: it is too large for the peer or has a NUL.
    func bytesToSend(limit: Int, what: String) throws(RPCStatus) -> [UInt8] {
        let bytes: [UInt8]
        do throws(WireError) {
            bytes = try encode()
        } catch {
            throw RPCStatus(.invalidArgument, "The \(what) is not valid: \(error.message).")
        }
        guard bytes.count <= limit else {
            throw RPCStatus(
                .resourceExhausted,
                "The \(what) has \(bytes.count) bytes, the other side takes at most \(limit).")
        }
        return bytes
    }
}
