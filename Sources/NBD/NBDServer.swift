package import BlockIO
internal import Glibc

/// Serves exports at one address. The first export that was added also answers to the empty name.
package final class NBDServer: Sendable {
    /// Where it listens: with the port that the system chose.
    package let address: NBDAddress

    private let registry = ExportRegistry()
    let reception: Reception
    private let listener: Listener
    private let engine: any IOEngine
    private let acceptors: Task<Void, Never>
    private let watchdog: Task<Void, Never>

    /// Starts to listen. `engine` does the handshakes; an export's requests run on its device's engine. A socket file that
    /// nobody answers on is replaced. `log` gets a sentence for each thing an operator may want to know. Call `shutDown`
    /// when it is no longer needed: until then the tasks of the server keep it going.
    package convenience init(
        listening address: NBDAddress, engine: any IOEngine, log: @escaping @Sendable (String) -> Void
    ) async throws(BlockError) {
        try await self.init(listening: address, engine: engine, limits: NBDLimits(), log: log)
    }

    init(
        listening address: NBDAddress, engine: any IOEngine, limits: NBDLimits,
        log: @escaping @Sendable (String) -> Void
    ) async throws(BlockError) {
        let opened: Result<Listener, BlockError> = await engine.blocking {
            Result { () throws(BlockError) in try Listener.open(address) }
        }
        let listener = try opened.get()
        let reception = Reception(registry, engine, limits, listener.address, log)
        self.engine = engine
        self.listener = listener
        self.reception = reception
        self.address = listener.address
        for socket in listener.sockets { _ = reception.doors.join(socket) }
        acceptors = Task(executorPreference: engine) {
            await withDiscardingTaskGroup { group in
                for socket in listener.sockets { group.addTask { await reception.accept(at: socket) } }
            }
        }
        watchdog = Task { await reception.watch() }
    }

    /// Serves one more device; throws `.alreadyExists` when the name is taken.
    package func add(_ export: NBDExport) throws(BlockError) { try registry.add(export) }

    /// Serves it no more: refuses new requests, waits for those that run (at most `patience`), disconnects its clients.
    /// False when the device still has requests that it does not finish: it is in use as long as they run, and must not be
    /// closed. An export that does not exist is gone already.
    @discardableResult
    package func remove(_ name: String, within patience: Duration) async -> Bool {
        await registry.remove(name)?.end(within: patience) ?? true
    }

    /// Whether an export of that name that was removed, by `shutDown` as well, still has requests that its device does not
    /// finish.
    package func isLeaving(_ name: String) -> Bool { registry.isLeaving(name) }

    /// How many clients have the export open.
    package func clients(of name: String) -> Int { registry.find(name)?.clients ?? 0 }

    /// Removes all exports, closes all connections and the socket. Nothing can be added afterwards. False when a device
    /// still has requests that it does not finish.
    @discardableResult
    package func shutDown(within patience: Duration) async -> Bool {
        for socket in reception.doors.close() { socket.shutDown() }
        watchdog.cancel()
        let exports = registry.close()
        await withTaskGroup(of: Void.self) { group in
            for export in exports { group.addTask { _ = await export.end(within: patience) } }
        }
        // Those that are left are in their handshake, or have requests that do not end.
        for connection in reception.connections.close() { connection.cutOff() }
        var areGone = await reception.doors.areGone(within: .seconds(1))
        if areGone { areGone = await reception.connections.areGone(within: .seconds(1)) }
        if areGone { await acceptors.value }
        let listener = listener
        await engine.blocking { listener.removeFile() }
        return areGone
    }
}
