internal import CBlockIO
internal import Glibc

/// When a file was last changed by this process, in memory that outlives it: so that the next one can tell a change of
/// somebody else's (DATAPATH.md rule 15).
///
/// Two words: when a change has begun or ended last, and how many have begun and not ended. Where none is in flight the
/// file's modification time is no later than the first word. What was in flight when the process was killed lands
/// later: by as much as the kernel takes for it, which is bounded by `slowest`.
package final class ChangeTimes: Sendable {
    /// How long a change may be in flight that the process before had begun, in nanoseconds: what was modified later than
    /// that after the last one's begin was modified by somebody else.
    package static let slowest: UInt64 = 10_000_000_000
    /// Bytes that the words take.
    package static let length = 16

    private let memory: MappedFile
    private let position: Int

    /// `position`, a multiple of 8, is where the words are; their space was taken.
    package init(in memory: MappedFile, at position: Int) {
        self.memory = memory
        self.position = position
    }

    /// In nanoseconds since 1970-01-01 UTC.
    package var last: UInt64 { memory.load(at: position) }
    package var inFlight: UInt64 { memory.load(at: position + 8) }

    /// A change is about to be submitted: so many are in flight with it.
    func begin(inFlight count: Int) {
        memory.store(UInt64(count), at: position + 8)
        memory.store(Self.now, at: position)
    }

    /// No modification of this process's, or of what it has left in flight, is later.
    package var latest: UInt64 { inFlight > 0 ? last + Self.slowest : last }

    /// A change has ended: so many are in flight without it. The time first, so that an end that is seen has its time.
    func end(inFlight count: Int) {
        memory.store(Self.now, at: position)
        memory.store(UInt64(count), at: position + 8)
    }

    /// The clock of modification times, in nanoseconds since 1970-01-01 UTC.
    package static var now: UInt64 { cblockio_wall_clock() }
}

extension HostFile {
    /// From now on `times` hears of each change of this file, before it is submitted and when it has ended; nil: nobody
    /// does. On the file's engine.
    package func noteChanges(in times: ChangeTimes?) {
        state.withState { state in
            state.changeTimes = times
            times?.end(inFlight: state.changesInFlight)
        }
    }

    func beginChange() {
        state.withState { state in
            state.changesInFlight += 1
            state.changeTimes?.begin(inFlight: state.changesInFlight)
        }
    }

    /// A change that has begun is about to be submitted, after having waited.
    func renewChange() {
        state.withState { $0.changeTimes?.begin(inFlight: $0.changesInFlight) }
    }

    func endChange() {
        state.withState { state in
            state.changesInFlight -= 1
            state.changeTimes?.end(inFlight: state.changesInFlight)
        }
    }

    /// When the file was last modified, in nanoseconds since 1970-01-01 UTC; nil where that says nothing about changes
    /// (block devices, and file systems whose time is another host's). Blocks. Throws what examining a file throws.
    package func modificationTime() throws(BlockError) -> UInt64? {
        guard !isBlockDevice, cblockio_has_times_of_host(descriptor) else { return nil }
        var status = stat()
        let result = cblockio_stat(descriptor, &status)
        guard result == 0 else { throw BlockError("Couldn't examine \(name)", errno: -result) }
        return UInt64(max(0, status.st_mtim.tv_sec)) * 1_000_000_000 + UInt64(status.st_mtim.tv_nsec)
    }
}
