package import BlockIO

/// Serves exports at one address. The first export that was added also answers to the empty name.
package final class NBDServer: Sendable {
    /// Where it listens: with the port that the system chose.
    package let address: NBDAddress

    /// Starts to listen. `engine` does the handshakes; an export's requests run on its device's engine. A socket file that
    /// nobody answers on is replaced. `log` gets a sentence for each thing an operator may want to know.
    package init(
        listening address: NBDAddress, engine: any IOEngine, log: @escaping @Sendable (String) -> Void
    ) async throws(BlockError) {
        self.address = address
    }

    /// Serves one more device; throws `.alreadyExists` when the name is taken.
    package func add(_ export: NBDExport) throws(BlockError) {}

    /// Serves it no more: refuses new requests, waits for those that run (at most `patience`), disconnects its clients.
    package func remove(_ name: String, within patience: Duration) async {}

    /// How many clients have the export open.
    package func clients(of name: String) -> Int { 0 }

    /// Removes all exports, closes all connections and the socket. Nothing can be added afterwards.
    package func shutDown(within patience: Duration) async {}
}
