internal import BlockIO
internal import Synchronization

// A new target is `NAME.partial` until it is whole and durable, then `NAME`. The directory is opened once and
// every name is looked up in it. Identities are compared before each step that could hurt somebody: before
// the file is made, before an orphan is removed, before the rename. The file is made exclusively and locked
// at once; an agent that finds a `.partial` without locks may take it for an orphan.

/// The names of a target that is being made. All methods block.
final class NewTargetFile: Sendable {
    static let suffix = ".partial"
    /// As qemu-img makes images; the umask applies.
    static let mode: UInt32 = 0o644

    /// The target's true path.
    let path: String
    let partialPath: String
    let directory: Directory
    let name: String
    private let partialName: String
    let overwrites: Bool
    private let claims: any TargetClaims
    private let job: JobNumber
    private let jobID: String
    /// An unfinished target of an earlier backup that is to be replaced.
    private let orphan: FileIdentity?
    private let made = Mutex<FileIdentity?>(nil)

    /// Checks that the target can be made; makes and changes nothing, but claims the files that have its
    /// names.
    init(checking spec: TargetSpec, overwrites: Bool, claims: any TargetClaims) throws(AgentError) {
        let (parent, name) = try PathPolicy.split(spec.path)
        directory = try Self.openDirectory(parent, for: spec.path)
        path = directory.path(of: name)
        partialPath = path + Self.suffix
        self.name = name
        partialName = name + Self.suffix
        self.overwrites = overwrites
        self.claims = claims
        (job, jobID) = (spec.job, spec.jobID)
        try spec.access.check(path)
        guard partialName.utf8.count <= 255 else {
            throw AgentError(
                .pathInvalid,
                "Couldn't make \(path): with \(Self.suffix) the name is longer than 255 bytes", subject: path)
        }
        let place = Place(directory: directory, claims: claims, job: job, jobID: jobID)
        try place.checkFinalName(name, overwrites: overwrites)
        orphan = try place.checkPartialName(partialName, overwrites: overwrites)
    }

    /// Finds what an earlier agent has left of a new target; makes and changes nothing.
    init(resuming spec: TargetSpec, _ known: TargetSpec.Resumption, claims: any TargetClaims)
        throws(AgentError)
    {
        let (parent, name) = try PathPolicy.split(spec.path)
        directory = try Self.openDirectory(parent, for: spec.path)
        path = directory.path(of: name)
        partialPath = path + Self.suffix
        self.name = name
        partialName = name + Self.suffix
        overwrites = known.overwrites
        self.claims = claims
        (job, jobID) = (spec.job, spec.jobID)
        orphan = nil
        try spec.access.check(path)
    }

    /// Opens and locks `NAME.partial`, if it is the file that `known` tells; the caller closes the descriptor. nil when that
    /// file has its final name by now, durably.
    func reopen(_ known: TargetSpec.Resumption) throws(AgentError) -> Int32? {
        do throws(BlockError) {
            if let descriptor = try openAgain(partialName, known) { return descriptor }
            if let descriptor = try openAgain(name, known) {
                Descriptor.close(descriptor)
                // The rename may have been the last that was done.
                try directory.synchronize()
                return nil
            }
        } catch {
            throw AgentError(error, of: .target, subject: path)
        }
        throw AgentError(
            .targetLost,
            "Couldn't go on with \(path): \(partialPath) was removed or replaced while the agent was not running",
            subject: path)
    }

    private func openAgain(
        _ candidate: String, _ known: TargetSpec.Resumption
    ) throws(BlockError) -> Int32? {
        guard let entry = try directory.entry(candidate), entry.kind == .regular,
            known.isOtherBoot || entry.identity.device == known.device, entry.identity.inode == known.inode
        else { return nil }
        let descriptor = try directory.open(candidate, readOnly: false)
        do throws(BlockError) {
            let identity = try FileIdentity.of(descriptor, path: path).identity
            guard identity == entry.identity, Descriptor.birthTime(descriptor) == known.birthTime else {
                Descriptor.close(descriptor)
                return nil
            }
            try ImageLock.acquire(
                descriptor, holding: .all, unsharing: .all, path: directory.path(of: candidate))
            made.withLock { $0 = identity }
            if candidate == partialName {
                claims.made(
                    TargetLeftover(
                        jobID: jobID, path: self.path, identity: identity, birthTime: known.birthTime,
                        overwrites: overwrites))
            }
            return descriptor
        } catch {
            Descriptor.close(descriptor)
            throw error
        }
    }

    private static func openDirectory(_ parent: String, for path: String) throws(AgentError) -> Directory {
        do throws(BlockError) { return try Directory(parent) } catch {
            guard error.code == .notFound else { throw AgentError(error, of: .target, subject: path) }
            throw AgentError(
                .fileNotFound, "Couldn't make \(path): there is no directory \(parent)", subject: parent)
        }
    }

    /// Makes and locks `NAME.partial`; the caller closes the descriptor. When it throws, nothing was made.
    func create() throws(AgentError) -> Int32 {
        do throws(BlockError) {
            if let orphan, try directory.entry(partialName)?.identity == orphan {
                claims.release(orphan, ofTarget: job)
                try directory.remove(partialName)
            }
            var file = TargetLeftover(jobID: jobID, path: path, identity: nil, overwrites: overwrites)
            claims.made(file)
            let descriptor = try directory.create(partialName, mode: Self.mode)
            do throws(BlockError) {
                let identity = try FileIdentity.of(descriptor, path: partialPath).identity
                made.withLock { $0 = identity }
                file.identity = identity
                file.birthTime = Descriptor.birthTime(descriptor)
                claims.made(file)
                try ImageLock.acquire(descriptor, holding: .all, unsharing: .all, path: partialPath)
                return descriptor
            } catch {
                try? directory.remove(partialName)  // the first error is the one to tell
                Descriptor.close(descriptor)
                throw error
            }
        } catch {
            // Somebody else makes the same target at the same moment.
            let isRace = error.code == .alreadyExists || error.code == .locked
            guard !isRace else {
                throw AgentError(
                    .targetBusy, "Couldn't make \(path): somebody else is making \(partialPath)",
                    subject: path)
            }
            throw AgentError(error, of: .target, subject: path)
        }
    }

    /// Takes the new file as the job's own.
    func claim() throws(AgentError) {
        guard let identity = made.withLock({ $0 }) else { return }
        try claims.claim([identity], path: partialPath, forTargetOf: job, id: jobID)
    }

    /// Gives the file, whole and durable, its name, and makes that durable; so with its manifest, in the order that is told
    /// there.
    func publish(beside manifest: ManifestFile) throws(BlockError) {
        guard try owns(partialName) else {
            throw BlockError(
                .notFound, "Couldn't finish \(path): \(partialPath) was removed or replaced while the job ran"
            )
        }
        if overwrites {
            let place = Place(directory: directory, claims: claims, job: job, jobID: jobID)
            do throws(AgentError) { try place.checkFinalName(name, overwrites: true) } catch {
                throw BlockError(.busy, error.message)
            }
        }
        let replaced = try directory.entry(name)
        let replaces = overwrites && replaced != nil
        if replaces { try manifest.removeOld() } else { try manifest.publish() }
        do throws(BlockError) {
            try directory.rename(partialName, to: name, replacing: overwrites)
        } catch {
            guard error.code == .alreadyExists else { throw error }
            guard try !owns(name) else {
                // Where names are given by linking: a kill came between the two steps, or an answer was lost.
                try directory.remove(partialName)
                return try directory.synchronize()
            }
            // It is not the other file's.
            manifest.discard(isTargetGone: true)
            throw BlockError(
                .alreadyExists,
                "Couldn't give the backup its name \(path): a file of that name appeared while the job ran "
                    + "(it was left as it is)", errno: error.errno)
        }
        if replaces { try manifest.publish() }
        try directory.synchronize()
    }

    /// Removes what `create` made, under whichever of its names it is. What is there of others stays; and so does, after
    /// a rename that replaced a file, the new one, which is whole: of two backups one must be left.
    func remove() throws(BlockError) {
        for candidate in overwrites ? [partialName] : [partialName, name] where try owns(candidate) {
            try directory.remove(candidate)
        }
        try directory.synchronize()
    }

    private func owns(_ candidate: String) throws(BlockError) -> Bool {
        guard let identity = made.withLock({ $0 }) else { return false }
        return try directory.entry(candidate)?.identity == identity
    }
}

extension NewTargetFile {
    /// What stands in the way of a new target in its directory.
    private struct Place {
        let directory: Directory
        let claims: any TargetClaims
        let job: JobNumber
        let jobID: String

        /// Checks what has the target's name now.
        func checkFinalName(_ name: String, overwrites: Bool) throws(AgentError) {
            let path = directory.path(of: name)
            guard let entry = try examine(name, path: path) else { return }
            guard overwrites else {
                let what =
                    entry.kind == .regular
                    ? "it exists already (--overwrite replaces it)"
                    : "there is \(entry.kind.rawValue) of that name already"
                throw AgentError(.targetExists, "Couldn't make \(path): \(what)", subject: path)
            }
            guard entry.kind == .regular else {
                throw AgentError(
                    .targetNotRegular,
                    "Couldn't replace \(path): it is \(entry.kind.rawValue), not a regular file (choose another name)",
                    subject: path)
            }
            guard try isUnlocked(name, path: path) else {
                throw AgentError(
                    .targetLocked, "Couldn't replace \(path): another process has it open and locked",
                    subject: path)
            }
        }

        /// Checks what has the name of the unfinished target now; the orphan that may be replaced, if there
        /// is one.
        func checkPartialName(_ name: String, overwrites: Bool) throws(AgentError) -> FileIdentity? {
            let path = directory.path(of: name)
            guard let entry = try examine(name, path: path) else { return nil }
            guard entry.kind == .regular else {
                throw AgentError(
                    .targetPartialExists,
                    "Couldn't make \(path): there is \(entry.kind.rawValue) of that name (remove it)",
                    subject: path)
            }
            guard try isUnlocked(name, path: path) else {
                throw AgentError(
                    .targetBusy, "Couldn't make \(path): another process is writing it", subject: path)
            }
            guard overwrites else {
                throw AgentError(
                    .targetPartialExists,
                    "Couldn't make \(path): it is there already, left over from a backup that did not finish "
                        + "(remove it, or use --overwrite)", subject: path)
            }
            return entry.identity
        }

        /// What has the name; refused when it is, under any name, a drive's file or another job's target.
        private func examine(_ name: String, path: String) throws(AgentError) -> Directory.Entry? {
            let entry: Directory.Entry?
            let followed: Directory.Entry?
            do throws(BlockError) {
                entry = try directory.entry(name)
                followed = try directory.entry(name, followingLinks: true)
            } catch {
                throw AgentError(error, of: .target, subject: path)
            }
            if let followed {
                try claims.claim([followed.identity], path: path, forTargetOf: job, id: jobID)
            }
            return entry
        }

        private func isUnlocked(_ name: String, path: String) throws(AgentError) -> Bool {
            do throws(BlockError) {
                let descriptor = try directory.open(name, readOnly: true)
                defer { Descriptor.close(descriptor) }
                try ImageLock.acquire(descriptor, holding: [], unsharing: .all, path: path)
                return true
            } catch {
                if error.code == .locked { return false }
                throw AgentError(error, of: .target, subject: path)
            }
        }
    }
}
