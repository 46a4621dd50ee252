internal import BlockIO
internal import Synchronization

/// The exports of a server, in the order in which they were added.
final class ExportRegistry: Sendable {
    private struct State {
        var exports: [ServedExport] = []
        /// Removed, and perhaps not left by all their clients yet.
        var leaving: [ServedExport] = []
        var nextID: UInt64 = 1
        var isClosed = false
    }

    private let state = Mutex(State())

    func add(_ export: NBDExport) throws(BlockError) {
        guard export.name.utf8.count <= NBDProtocol.maximumString, !export.name.utf8.contains(0) else {
            throw BlockError(
                .invalid,
                "Couldn't export \(export.device.name): a name has at most 4096 bytes, none of them 0")
        }
        try state.withLock { state throws(BlockError) in
            guard !state.isClosed else {
                throw BlockError(
                    .cancelled, "Couldn't export \(export.device.name): the server has been shut down")
            }
            guard !state.exports.contains(where: { $0.export.name == export.name }) else {
                throw BlockError(
                    .alreadyExists,
                    "Couldn't export \(export.device.name): there is an export \"\(export.name)\" already")
            }
            state.exports.append(ServedExport(export, id: state.nextID))
            state.nextID += 1
        }
    }

    /// Nobody finds it any more.
    func remove(_ name: String) -> ServedExport? {
        state.withLock { state in
            guard let index = state.exports.firstIndex(where: { $0.export.name == name }) else { return nil }
            state.leaving.append(state.exports[index])
            return state.exports.remove(at: index)
        }
    }

    /// Removes all; none can be added afterwards.
    func close() -> [ServedExport] {
        state.withLock { state in
            state.isClosed = true
            defer { state.exports = [] }
            state.leaving += state.exports
            return state.exports
        }
    }

    /// Whether a removed export of that name still has clients, whose requests do not end.
    func isLeaving(_ name: String) -> Bool {
        state.withLock { state in
            state.leaving.removeAll(where: \.isGone)
            return state.leaving.contains { $0.export.name == name }
        }
    }

    func find(id: UInt64) -> ServedExport? { state.withLock { $0.exports.first { $0.id == id } } }

    func find(_ name: String) -> ServedExport? {
        state.withLock { $0.exports.first { $0.export.name == name } }
    }

    /// What clients may know; the default export first.
    var facts: [HandshakeMachine.ExportFacts] { state.withLock { $0.exports }.map(\.facts) }
}
