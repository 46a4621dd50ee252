internal import BlockIO
internal import Synchronization

/// The errors of a job that did not end it: what of them is to be told when, and the last of them.
///
/// A disk with thousands of bad sectors must not drive everything else out of the event log. So errors of one kind (side,
/// operation, error number, action) are told at most twice a second: the first at once, those that follow merged into one,
/// which has their number and the range that spans them. Nothing is lost: the counts of what is told add up to `count`.
struct JobErrors: Sendable, Hashable {
    /// How far apart two of a kind are told, in nanoseconds.
    static let interval: Int64 = 500_000_000
    /// How many are kept.
    static let bound = 16

    private struct Kind: Sendable, Hashable {
        let side: JobIOError.Side
        let operation: JobIOError.Operation
        let errno: Int32
        let action: JobIOError.Action

        init(_ error: JobIOError) {
            (side, operation, errno, action) = (error.side, error.operation, error.errno, error.action)
        }
    }

    /// How many operations have failed.
    private(set) var count: UInt64 = 0
    private var told: [JobIOError] = []
    /// Merged, and not told yet, in the order of their first ones.
    private var pending: [Merged] = []
    /// When one of a kind was told last.
    private var times: [Kind: Int64] = [:]

    /// Those of a job without any so far.
    init() {}

    /// Those of a job that an agent before has had: `count` operations, and the `last` of their errors.
    init(count: UInt64, last: [JobIOError]) {
        self.count = count
        told = last.suffix(Self.bound)
    }

    /// The last errors, merged as they are told, oldest first; those that are not told yet, too.
    var last: [JobIOError] { (told + pending.map(\.error)).suffix(Self.bound) }

    /// Notes an error. Returns what is to be told now: it, or nothing.
    mutating func note(_ error: JobIOError, now: Int64) -> [JobIOError] {
        count += UInt64(error.count)
        let kind = Kind(error)
        if let index = pending.firstIndex(where: { Kind($0.error) == kind }) {
            pending[index].take(error)
            return []
        }
        guard isDue(kind, now) else {
            pending.append(Merged(error))
            return []
        }
        return tell([error], now)
    }

    /// What has waited long enough to be told.
    mutating func due(now: Int64) -> [JobIOError] {
        guard !pending.isEmpty else { return [] }
        var (due, rest): ([JobIOError], [Merged]) = ([], [])
        for merged in pending {
            if isDue(Kind(merged.error), now) { due.append(merged.error) } else { rest.append(merged) }
        }
        pending = rest
        return tell(due, now)
    }

    /// All that was not told yet: something follows that must not come before it.
    mutating func takePending(now: Int64) -> [JobIOError] {
        defer { pending = [] }
        return tell(pending.map(\.error), now)
    }

    /// Notes an error that ends the job: it is told at once, after all that was not told yet.
    mutating func noteLast(_ error: JobIOError, now: Int64) -> [JobIOError] {
        let before = takePending(now: now)
        count += UInt64(error.count)
        return before + tell([error], now)
    }

    private func isDue(_ kind: Kind, _ now: Int64) -> Bool {
        guard let time = times[kind] else { return true }
        // The wall clock may have been set back.
        return now < time || now - time >= Self.interval
    }

    private mutating func tell(_ errors: [JobIOError], _ now: Int64) -> [JobIOError] {
        for error in errors { times[Kind(error)] = now }
        told = (told + errors).suffix(Self.bound)
        return errors
    }
}

/// Errors of one kind that become one.
private struct Merged: Sendable, Hashable {
    private(set) var error: JobIOError
    /// What the first of them says.
    private let first: String

    init(_ error: JobIOError) {
        self.error = error
        first = error.message
    }

    /// Takes in another error of the same kind. Where it is about another place, the sentence tells of the range that spans
    /// both: that of the first alone would not be about it.
    mutating func take(_ other: JobIOError) {
        let (sum, isTooMany) = error.count.addingReportingOverflow(other.count)
        error.count = isTooMany ? .max : sum
        guard let more = other.range, more != error.range else { return }
        guard let range = error.range else {
            error.range = more
            return
        }
        let all = ByteRange(min(range.offset, more.offset)..<max(range.end, more.end))
        error.range = all
        error.message = "Failures between the offsets \(all.offset) and \(all.end), the first: \(first)"
    }
}

/// Errors on their way from a job's data path to the manager, in order. Neither waits for the other.
final class ErrorInbox: Sendable {
    private let errors = Mutex<[JobIOError]>([])

    /// Adds an error; true when the inbox was empty, so that somebody has to be told to look.
    func put(_ error: JobIOError) -> Bool {
        errors.withLock { errors in
            errors.append(error)
            return errors.count == 1
        }
    }

    /// Takes all out.
    func take() -> [JobIOError] {
        errors.withLock { errors in
            defer { errors = [] }
            return errors
        }
    }
}
