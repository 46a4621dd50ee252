internal import BlockIO

/// An existing file or block device that is to be a target, open and not locked yet. All of it blocks.
struct ExistingTargetFile: Sendable {
    /// The true path.
    let path: String
    /// Open for reading and writing; whoever has this value closes it.
    let descriptor: Int32

    /// Opens what `spec` names, following links; claims it and changes nothing.
    init(opening spec: TargetSpec, claims: any TargetClaims) throws(AgentError) {
        let (parent, name) = try PathPolicy.split(spec.path)
        do throws(BlockError) {
            let directory = try Directory(parent)
            guard let entry = try directory.entry(name, followingLinks: true) else {
                throw BlockError(.notFound, "")
            }
            guard entry.kind == .regular || entry.kind == .blockDevice else {
                throw BlockError(
                    .unsupported,
                    "Couldn't use \(spec.path) as target: it is \(entry.kind.rawValue), not a regular file or "
                        + "a block device")
            }
            descriptor = try directory.open(name, readOnly: false, followingLinks: true)
        } catch {
            switch error.code {
            case .notFound:
                throw AgentError(
                    .targetMissing,
                    "Couldn't use \(spec.path) as target: there is no such file (mode absolute-paths makes a "
                        + "new one)", subject: spec.path)
            case .unsupported:
                throw AgentError(.targetNotRegular, error.message, subject: spec.path)
            default:
                throw AgentError(error, of: .target, subject: spec.path)
            }
        }
        do throws(AgentError) {
            path = try Self.check(descriptor, spec, claims)
        } catch {
            Descriptor.close(descriptor)
            throw error
        }
    }

    /// What is open now, whatever the name led to a moment ago: below the allowed directories, and nobody
    /// else's.
    private static func check(
        _ descriptor: Int32, _ spec: TargetSpec, _ claims: any TargetClaims
    ) throws(AgentError) -> String {
        let path: String
        let identities: [FileIdentity]
        do throws(BlockError) {
            path = try Directory.path(of: descriptor, name: spec.path)
            let (identity, aliases) = try FileIdentity.of(descriptor, path: spec.path)
            identities = [identity] + aliases
        } catch {
            throw AgentError(error, of: .target, subject: spec.path)
        }
        try spec.access.check(path)
        try claims.claim(identities, path: path, forTargetOf: spec.job, id: spec.jobID)
        return path
    }
}
