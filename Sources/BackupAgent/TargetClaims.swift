package import BlockIO

/// Where a target's opening asks who uses which file. The agent knows (`FileClaims`); a target's process asks the agent.
protocol TargetClaims: Sendable {
    /// Takes a file as a job's target (again: no change). Refused when it belongs to a drive or to another job. May block.
    func claim(
        _ identities: [FileIdentity], path: String, forTargetOf job: JobNumber, id: String
    ) throws(AgentError)

    /// Gives up all that `holder` has.
    func release(_ holder: FileClaims.Holder)

    /// Gives up one file that the target of `job` has.
    func release(_ identity: FileIdentity, ofTarget job: JobNumber)

    /// Tells of a file that is made now, or was, and has to be removed by somebody if its job does not end well.
    func made(_ file: TargetLeftover)
}

extension TargetClaims {
    /// Takes the file of a target that is about to be reopened.
    func reserve(_ spec: TargetSpec) {
        guard case .resume(let known) = spec.mode else { return }
        // A block device's file is its number; what is in use by others is told when it is opened.
        let identity = FileIdentity(fileOn: known.device, inode: known.inode)
        // As above: it is refused then.
        try? claim([identity], path: spec.path, forTargetOf: spec.job, id: spec.jobID)
    }
}

extension FileClaims: TargetClaims {
    /// Who makes a target in this process removes it himself.
    func made(_ file: TargetLeftover) {}
}

/// A file that a job has made for its target, which is to be removed when the job does not end well.
package struct TargetLeftover: Sendable, Hashable, Codable {
    package var jobID: String
    /// The target's true path, without `.partial`.
    package var path: String
    /// nil: the job was about to make the file, and nobody knows whether it has. Then it is empty.
    package var identity: FileIdentity?
    /// When the file was made, in nanoseconds since 1970; 0: not known, as on some file systems.
    package var birthTime: UInt64 = 0
    /// It was to replace a file: once it has, one of two backups must be left, and it stays.
    package var overwrites: Bool

    /// Removes the file under whichever of its names it is; no error when it is gone, or another is there. Throws `.locked`
    /// while somebody uses it. Blocks, for as long as the file system does.
    func remove() throws(BlockError) {
        let (parent, name): (String, String)
        do throws(AgentError) { (parent, name) = try PathPolicy.split(path) } catch {
            throw BlockError(.invalid, error.message)
        }
        let directory: Directory
        do throws(BlockError) { directory = try Directory(parent) } catch {
            guard error.code == .notFound else { throw error }
            return
        }
        let partial = name + NewTargetFile.suffix
        // By its number alone a later file could be taken for it: then its final name is nobody's to remove.
        let isCertain = identity != nil && birthTime != 0
        for candidate in overwrites || !isCertain ? [partial] : [partial, name] {
            guard let entry = try directory.entry(candidate), entry.kind == .regular,
                identity == nil || entry.identity == identity
            else { continue }
            let descriptor = try directory.open(candidate, readOnly: true)
            defer { Descriptor.close(descriptor) }
            let path = directory.path(of: candidate)
            // Another file may have got the name meanwhile.
            guard try isOurs(descriptor, path: path) else { continue }
            try ImageLock.acquire(descriptor, holding: [], unsharing: .all, path: path)
            // What was written of its manifest goes first: who finds the target finds that, too.
            if candidate == partial { try removeManifest(of: name, in: directory) }
            try directory.remove(candidate)
        }
        try directory.synchronize()
    }

    /// Removes a manifest that has not got its name: while the unfinished target is there nobody else writes one.
    private func removeManifest(of name: String, in directory: Directory) throws(BlockError) {
        let manifest = name + Manifest.suffix + NewTargetFile.suffix
        if try directory.entry(manifest)?.kind == .regular { try directory.remove(manifest) }
    }

    /// The name was free when the job was about to make the file. One that has it now, is empty and the agent's user's can
    /// only be the one that was made, or one that somebody makes at this moment, who has lost nothing yet.
    private func isOurs(_ descriptor: Int32, path: String) throws(BlockError) -> Bool {
        if let identity {
            return try FileIdentity.of(descriptor, path: path).identity == identity
                && (birthTime == 0 || Descriptor.birthTime(descriptor) == birthTime)
        }
        return try Descriptor.isEmptyAndOwn(descriptor, path: path)
    }
}
