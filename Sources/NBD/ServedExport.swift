internal import BlockIO

/// An export and the clients that have it open.
final class ServedExport: Sendable {
    /// Never used twice by a server.
    let id: UInt64
    let export: NBDExport
    private let transmissions = Members<Transmission>()

    init(_ export: NBDExport, id: UInt64) {
        self.export = export
        self.id = id
    }

    var facts: HandshakeMachine.ExportFacts {
        let isReadOnly = export.isReadOnly || export.device.isReadOnly
        var flags: TransmissionFlags = [
            .hasFlags, .sendFlush, .sendFUA, .sendTrim, .sendWriteZeroes, .sendFastZero, .canMultiConn,
        ]
        if isReadOnly { flags.insert(.readOnly) }
        return HandshakeMachine.ExportFacts(
            id: id, name: export.name, description: export.description, size: export.device.size,
            flags: flags,
            minimumBlock: UInt32(max(1, export.device.limits.requestAlignment)))
    }

    var clients: Int { transmissions.count }

    /// It went away, and nothing of it is left.
    var isGone: Bool { transmissions.isClosed && transmissions.count == 0 }

    /// False when the export goes away.
    func join(_ transmission: Transmission) -> Bool { transmissions.join(transmission) }

    func leave(_ transmission: Transmission) { transmissions.leave(transmission) }

    /// Refuses new requests, lets those that run end, for at most `patience`, and disconnects all clients. False when the
    /// device still has requests that it does not finish; it is in use as long as they run.
    func end(within patience: Duration) async -> Bool {
        let ending = transmissions.close()
        // All in one step: a client that was told knows that no other is served any more.
        if !ending.isEmpty {
            await export.device.engine.run { for transmission in ending { transmission.beginEnding() } }
        }
        if await transmissions.areGone(within: patience) { return true }
        for transmission in ending { transmission.cutOff() }
        // What is left of a connection without requests goes away at once.
        return await transmissions.areGone(within: .seconds(1))
    }
}
