package import BlockIO
internal import Synchronization

/// Who uses which file: all files of all open drives, and the targets of all jobs, by device and inode.
///
/// It is the one place that knows whether a target is a source, whatever path names it. Claims are taken and
/// given up at once, from any thread.
package final class FileClaims: Sendable {
    package enum Holder: Sendable, Hashable {
        case drive(String)
        case target(JobNumber, jobID: String)
    }

    /// A file of a drive's chain.
    package struct DriveFile: Sendable, Hashable {
        package var path: String
        package var identities: [FileIdentity]
        package var isWritten: Bool
    }

    private struct Claim {
        var holder: Holder
        var path: String
        var isWritten: Bool
        /// The holder's process, which was abandoned and is still there.
        var abandoned: Int32?

        /// What to add to a refusal because of that.
        var hanging: String {
            abandoned.map { ": its process \($0) was abandoned, and what it asked for has not ended" } ?? ""
        }
    }

    private let claims = Mutex<[FileIdentity: [Claim]]>([:])

    package init() {}

    /// Takes the files of a drive that is being opened. Refused, with nothing taken, when one is a target, or
    /// belongs to another drive and either writes it.
    package func claim(_ files: [DriveFile], forDrive id: String) throws(AgentError) {
        let holder = Holder.drive(id)
        let refusal: AgentError? = claims.withLock { claims in
            for file in files {
                for claim in file.identities.flatMap({ claims[$0] ?? [] }) where claim.holder != holder {
                    switch claim.holder {
                    case .target(_, let job):
                        return AgentError(
                            .targetBusy,
                            "Couldn't open the drive \(id): \(file.path) is the target of the job \(job)"
                                + claim.hanging,
                            subject: file.path)
                    case .drive(let other) where claim.isWritten || file.isWritten:
                        return AgentError(
                            .driveBusy,
                            "Couldn't open the drive \(id): \(file.path) belongs to the drive \(other), and "
                                + "one of the two may write it (open both read-only, or use one drive)",
                            subject: other)
                    case .drive: break
                    }
                }
            }
            for file in files {
                for identity in file.identities {
                    claims[identity, default: []].append(
                        Claim(holder: holder, path: file.path, isWritten: file.isWritten))
                }
            }
            return nil
        }
        if let refusal { throw refusal }
    }

    /// Takes a file as a job's target (again: no change). Refused when it belongs to a drive or to another
    /// job.
    package func claim(
        _ identities: [FileIdentity], path: String, forTargetOf job: JobNumber, id: String
    ) throws(AgentError) {
        let holder = Holder.target(job, jobID: id)
        let refusal: AgentError? = claims.withLock { claims in
            if let claim = identities.flatMap({ claims[$0] ?? [] }).first(where: { $0.holder != holder }) {
                return Self.refusal(claim, path: path)
            }
            for identity in identities where claims[identity] == nil {
                claims[identity] = [Claim(holder: holder, path: path, isWritten: true)]
            }
            return nil
        }
        if let refusal { throw refusal }
    }

    private static func refusal(_ claim: Claim, path: String) -> AgentError {
        switch claim.holder {
        case .drive(let drive):
            let sameName = claim.path == path ? "" : ", there called \(claim.path)"
            return AgentError(
                .targetIsSource,
                "Couldn't use \(path) as target: it is a file of the drive \(drive)\(sameName)",
                subject: drive)
        case .target(_, let job):
            return AgentError(
                .targetBusy, "Couldn't use \(path) as target: the job \(job) is using it" + claim.hanging,
                subject: job)
        }
    }

    /// Notes that what `holder` has is used by a process that was abandoned, until it is released.
    func abandon(_ holder: Holder, process: Int32) {
        claims.withLock { claims in
            for identity in claims.keys {
                for index in claims[identity, default: []].indices
                where claims[identity]?[index].holder == holder {
                    claims[identity]?[index].abandoned = process
                }
            }
        }
    }

    /// Gives up all that `holder` has.
    package func release(_ holder: Holder) {
        claims.withLock { claims in
            for (identity, list) in claims {
                let rest = list.filter { $0.holder != holder }
                claims[identity] = rest.isEmpty ? nil : rest
            }
        }
    }

    /// Gives up one file that the target of `job` has.
    package func release(_ identity: FileIdentity, ofTarget job: JobNumber) {
        claims.withLock { claims in
            let rest = (claims[identity] ?? []).filter { claim in
                if case .target(job, _) = claim.holder { false } else { true }
            }
            claims[identity] = rest.isEmpty ? nil : rest
        }
    }
}
