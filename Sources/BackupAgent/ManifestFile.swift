internal import BlockIO
internal import Synchronization

// A manifest is written as NAME.partial, flushed, and then gets its name in one step, so that nobody ever reads half of
// one. A file of its name that is no manifest is somebody's, and stays. When a target gets its name no target must stand
// beside a manifest that is not its own, whatever is cut off in between:
//
//   new target        manifest renamed ─► directory flushed ─► target renamed ─► directory flushed
//   replaced target   old manifest removed ─► directory flushed ─► target renamed ─► manifest renamed ─► flushed
//   existing target   (partial manifest before the first write) ... target flushed ─► manifest renamed ─► flushed
//
// What a crash leaves of a new target is a manifest without target, which the next backup of that name replaces; of a
// replaced one the old or the new target without manifest.

/// The manifest of one target, by its names in a directory.
final class ManifestFile: Sendable {
    private static let mode: UInt32 = 0o644

    let path: String
    private let directory: Directory
    private let name: String
    private let temporaryName: String
    private let engine: any IOEngine
    private let state = Mutex(State())

    private struct State {
        /// The manifest that had the name at the start.
        var old: FileIdentity?
        var staged: FileIdentity?
        var published: FileIdentity?
        /// What an earlier agent has done of it counts.
        var isTakenUp = false
    }

    /// `target` is the target's own name, or what stands for it.
    init(of target: String, in directory: Directory, on engine: any IOEngine) {
        self.directory = directory
        name = target + Manifest.suffix
        temporaryName = name + NewTargetFile.suffix
        path = directory.path(of: name)
        self.engine = engine
    }

    /// Checks that the names can be taken; changes nothing.
    func check() async throws(AgentError) {
        guard temporaryName.utf8.count <= 255 else {
            throw AgentError(
                .pathInvalid,
                "Couldn't make \(path): with \(NewTargetFile.suffix) the name is longer than 255 bytes (choose a shorter "
                    + "name for the target)", subject: path)
        }
        for candidate in [name, temporaryName] {
            let identity: FileIdentity?
            do throws(BlockError) { identity = try await examine(candidate) } catch {
                if error.code == .alreadyExists {
                    throw AgentError(.manifestExists, error.message, subject: directory.path(of: candidate))
                }
                throw AgentError(error, of: .target, subject: directory.path(of: candidate))
            }
            if candidate == name { state.withLock { $0.old = identity } }
        }
    }

    /// Takes over what an earlier agent has written for the same target: what has no name yet gets it with the target's.
    func takeUp() async throws(AgentError) {
        try await check()
        do throws(BlockError) {
            let staged = try await examine(temporaryName)
            state.withLock { state in
                state.staged = staged
                state.isTakenUp = true
            }
        } catch {
            throw AgentError(error, of: .target, subject: path)
        }
    }

    /// What has the name; refused when it is nothing that may be replaced.
    private func examine(_ candidate: String) async throws(BlockError) -> FileIdentity? {
        let entry = try await blocking { directory throws(BlockError) in try directory.entry(candidate) }
        guard let entry else { return nil }
        guard entry.kind == .regular else {
            throw BlockError(
                .alreadyExists,
                "Couldn't make \(directory.path(of: candidate)): there is \(entry.kind.rawValue) of that name (remove it)"
            )
        }
        let mark = Array(Manifest.mark.utf8)
        let descriptor = try await blocking { directory throws(BlockError) in
            try directory.open(candidate, readOnly: true)
        }
        let file = try await HostFile(
            adopting: descriptor, name: directory.path(of: candidate), readOnly: true, engine: engine)
        let count = Int(min(file.size, UInt64(mark.count)))
        let buffer = IOBuffer(count: max(count, 1))
        let failure: BlockError?
        do throws(BlockError) {
            let range = ByteRange(offset: 0, length: UInt64(count))
            if count > 0 { try await file.read(range, into: buffer[0..<count]) }
            failure = nil
        } catch {
            failure = error
        }
        // It was only read.
        try? await file.close()
        if let failure { throw failure }
        // One that was cut off is a part of one.
        let isWhole = count == mark.count || candidate == temporaryName
        guard isWhole, UnsafeRawBufferPointer(buffer[0..<count].bytes).elementsEqual(mark[..<count]) else {
            throw BlockError(
                .alreadyExists,
                "Couldn't make \(directory.path(of: candidate)): there is a file of that name, and it is no manifest "
                    + "(move it away)")
        }
        return entry.identity
    }

    // MARK: Writing

    /// Writes a manifest that has not its name yet, durably. One that was written before is replaced.
    func stage(_ content: [UInt8]) async throws(BlockError) {
        // Nothing of others may have come up meanwhile.
        _ = try await examine(temporaryName)
        let temporaryName = temporaryName
        let descriptor = try await blocking { directory throws(BlockError) in
            try directory.remove(temporaryName)
            return try directory.create(temporaryName, mode: Self.mode)
        }
        let file = try await HostFile(
            adopting: descriptor, name: directory.path(of: temporaryName), readOnly: false, growable: true,
            engine: engine)
        state.withLock { $0.staged = file.identity }
        do throws(BlockError) {
            let buffer = IOBuffer(count: min(max(content.count, 1), 1 << 20))
            var offset = 0
            while offset < content.count {
                let count = min(buffer.count, content.count - offset)
                buffer[0..<count].bytes.copyBytes(from: content[offset..<offset + count])
                try await file.write(
                    ByteRange(offset: UInt64(offset), length: UInt64(count)), from: buffer[0..<count])
                offset += count
            }
            try await file.flush()
            try await file.close()
        } catch {
            // The first error is the one to tell.
            try? await file.close()
            throw error
        }
    }

    /// Gives what was written its name, durably; nothing where nothing was. Blocks.
    func publishStaged() throws(BlockError) { if state.withLock({ $0.staged }) != nil { try publish() } }

    /// Gives what was written its name, durably. Without anything written a manifest of an earlier backup is removed.
    /// Blocks.
    func publish() throws(BlockError) {
        let (found, isTakenUp) = state.withLock { ($0.staged, $0.isTakenUp) }
        guard let staged = found else {
            // The earlier agent has given it its name.
            if !isTakenUp { try removeOld() }
            return
        }
        let current = try directory.entry(name)
        if let current {
            let isKnown = state.withLock { $0.old == current.identity || $0.published == current.identity }
            guard isKnown else {
                throw BlockError(
                    .alreadyExists, "Couldn't make \(path): a file of that name appeared while the job ran")
            }
        }
        guard try directory.entry(temporaryName)?.identity == staged else {
            throw BlockError(
                .notFound,
                "Couldn't make \(path): \(temporaryName) was removed or replaced while the job ran")
        }
        try directory.rename(temporaryName, to: name, replacing: current != nil)
        state.withLock { state in
            state.staged = nil
            state.published = staged
        }
        try directory.synchronize()
    }

    /// Removes the manifest of what is replaced, durably. Blocks.
    func removeOld() throws(BlockError) {
        guard let old = state.withLock({ $0.old }), try directory.entry(name)?.identity == old else { return }
        try directory.remove(name)
        try directory.synchronize()
    }

    /// Removes what was written and has not its name; of a target that goes, too (`isTargetGone`), what has. Blocks.
    func discard(isTargetGone: Bool) {
        let (staged, published) = state.withLock { ($0.staged, $0.published) }
        // Whoever gives a target up has a reason that was told already; a manifest without target names itself.
        if let staged, (try? directory.entry(temporaryName)?.identity) == staged {
            try? directory.remove(temporaryName)  // as above
        }
        // As above.
        if isTargetGone, let published, (try? directory.entry(name)?.identity) == published {
            try? directory.remove(name)  // as above
        }
    }

    private func blocking<Value: Sendable>(
        _ body: @escaping @Sendable (Directory) throws(BlockError) -> Value
    ) async throws(BlockError) -> Value {
        let directory = directory
        let result: Result<Value, BlockError> = await engine.blocking {
            Result { () throws(BlockError) in try body(directory) }
        }
        return try result.get()
    }
}
