package import BlockIO

/// A drive as its guests see it: the image, and in front of it what a running backup needs to save before it changes.
///
/// One per open drive; everything that writes to the drive goes through it. Without a job it passes requests on and only
/// notes which are in flight, since these belong to *before* when a job's point in time is fixed. With one, the way of
/// a write or zero is: note it; let go of discards that were kept there; wait for requests of before; have the old
/// content saved; pass it on. docs/architecture.md tells why in this order.
package final class LiveDrive: BlockDevice {
    /// Numbers that grow with each request of the guest; who compares them knows what the guest is doing.
    struct Activity {
        var requests: UInt64 = 0
        /// Those that change something, among them.
        var changes: UInt64 = 0
    }

    struct State {
        var requests = RequestsInFlight()
        var kept = KeptDiscards()
        var point: PointInTime?
        /// Who waits for requests of before, or for kept discards on their way.
        var waiters = Waiters()
        /// Passes on kept discards, by the ranges in which they may not be needed any more.
        var passer: Task<Void, Never>?
        var toPassOn: [ByteRange] = []
        var activity = Activity()
    }

    /// Longer writes take a task beside a job.
    private static let longestAtOnceBesideJob: UInt64 = 64 << 10

    /// The drive's image, below.
    package let device: any BlockDevice
    let state: EngineIsolated<State>
    /// Memory for old content, its own: what waits for a target must not hold up a guest.
    let buffers = SaveBuffers()

    /// Takes over `device`, which `close` closes.
    package init(_ device: any BlockDevice) {
        self.device = device
        state = EngineIsolated(State(), engine: device.engine)
    }

    package var name: String { device.name }
    package var engine: any IOEngine { device.engine }
    package var size: UInt64 { device.size }
    package var isReadOnly: Bool { device.isReadOnly }
    package var limits: BlockLimits { device.limits }

    // MARK: The guest's requests

    package func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        state.value.activity.requests &+= 1
        try await device.read(range, into: buffer)
    }

    package func readAtOnce(_ range: ByteRange, into buffer: IOSlice) -> Bool {
        guard device.readAtOnce(range, into: buffer) else { return false }
        state.value.activity.requests &+= 1
        return true
    }

    package var fillsPipes: Bool { device.fillsPipes }

    package func hasCached(_ range: ByteRange) -> Bool { device.hasCached(range) }

    package func fill(_ pipe: PagePipe, with range: ByteRange) -> Bool {
        guard device.fill(pipe, with: range) else { return false }
        state.value.activity.requests &+= 1
        return true
    }

    package func beginRead(
        _ range: ByteRange, into buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        guard device.beginRead(range, into: buffer, done) else { return false }
        state.value.activity.requests &+= 1
        return true
    }

    /// When nothing has to be waited for. It begins and ends in one step, so that nobody else ever sees it in flight.
    package func writeAtOnce(_ range: ByteRange, from buffer: IOSlice) -> Bool {
        // Beside a job the thread has more to do than long writes.
        let point = state.value.point
        guard range.length <= Self.longestAtOnceBesideJob || point == nil,
            mayChangeAtOnce(range, point), device.writeAtOnce(range, from: buffer)
        else { return false }
        noteChange()
        point?.noteWrite(range)
        return true
    }

    /// Blocks that they overwrite are saved together, before the first of them is made.
    package func expectWrites(_ ranges: () -> [ByteRange]) {
        guard let point = state.value.point, isClear else { return }
        point.saveAtOnce(together: ranges())
    }

    /// When nothing but the disk has to be waited for.
    package func beginWrite(
        _ range: ByteRange, from buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        let point = state.value.point
        guard mayChangeAtOnce(range, point) else { return false }
        // In flight like any other: a job that comes meanwhile counts it as one of before.
        let request = state.value.requests.begin(range)
        let hasBegun = device.beginWrite(range, from: buffer) { end in
            self.end(request)
            done(end)
        }
        guard hasBegun else {
            end(request)
            return false
        }
        noteChange()
        point?.noteWrite(range)
        return true
    }

    /// Whether `range` may change in this step, after what can be saved in it for `point`, the drive's.
    private func mayChangeAtOnce(_ range: ByteRange, _ point: PointInTime?) -> Bool {
        guard range.end <= size else { return false }
        return isClear && point?.saveAtOnce(range) ?? true
    }

    /// No change has to wait for discards that are kept, or for requests of before.
    private var isClear: Bool { state.withState { $0.kept.isEmpty && $0.requests.beforeCount == 0 } }

    private func noteChange() {
        state.withState { state in
            state.activity.requests &+= 1
            state.activity.changes &+= 1
        }
    }

    package func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try check(range, to: "write")
        let (request, point) = begin(range)
        defer { end(request) }
        try await prepare(range, point)
        try await device.write(range, from: buffer)
    }

    package func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        try check(range, to: "write zeroes to")
        let (request, point) = begin(range)
        defer { end(request) }
        try await prepare(range, point)
        try await device.writeZeroes(range, mayUnmap: mayUnmap)
    }

    package func zeroesQuickly(mayUnmap: Bool) -> Bool { device.zeroesQuickly(mayUnmap: mayUnmap) }

    /// Answered at once where a job needs the old content: then it is kept, and passed on later (DATAPATH.md rule 7).
    package func discard(_ range: ByteRange) async throws(BlockError) {
        try check(range, to: "discard")
        let (request, point) = begin(range)
        defer { end(request) }
        var rest = range
        while !rest.isEmpty {
            let (part, isNeeded) = attached(point)?.firstPart(of: rest) ?? (rest, false)
            rest = rest.dropFirst(part.length)
            if isNeeded {
                state.value.kept.keep(part)
            } else {
                await waitForBefore(part, point)
                try await device.discard(part)
            }
        }
    }

    package func flush() async throws(BlockError) { try await device.flush() }

    package func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        try await device.extents(in: range)
    }

    /// Closes the image once the discards that were kept have been passed on. No job uses the drive.
    package func close() async throws(BlockError) {
        precondition(state.value.point == nil, "a drive is closed when no job uses it")
        while let passer = state.value.passer { await passer.value }
        try await device.close()
    }

    // MARK: Before a change

    /// Notes a request, and the job for which it has to save: that of this step. A job that comes later finds it in flight
    /// and counts it as one of before.
    private func begin(_ range: ByteRange) -> (request: Int, point: PointInTime?) {
        noteChange()
        return state.withState { ($0.requests.begin(range), $0.point) }
    }

    private func end(_ request: Int) {
        state.withState { state in
            guard state.requests.end(request) else { return }
            state.waiters.wake()
            if state.requests.beforeCount == 0 { state.point?.beforeEnded() }
        }
    }

    /// Returns when `range` may change. Without a job, and nothing kept, that is at once.
    private func prepare(_ range: ByteRange, _ point: PointInTime?) async throws(BlockError) {
        point?.noteWrite(range)
        if !state.value.kept.isEmpty {
            state.value.kept.drop(range)
            while state.value.kept.isPassing(range) { await wait() }
        }
        await waitForBefore(range, point)
        if let point = attached(point) { try await point.save(range) }
    }

    /// The job as long as it is the drive's; not once it has let go, whoever has come after it.
    private func attached(_ point: PointInTime?) -> PointInTime? {
        point.flatMap { $0 === state.value.point ? $0 : nil }
    }

    private func waitForBefore(_ range: ByteRange, _ point: PointInTime?) async {
        while let point = attached(point),
            state.value.requests.isAnyBefore(in: range, clusterSize: point.clusterSize)
        { await wait() }
    }

    private func wait() async {
        await withUnsafeContinuation { continuation in state.value.waiters.add(continuation) }
    }

    var activity: Activity { state.value.activity }

    // MARK: The job

    /// The switch: from here on `point` is what changes are saved for. One step, on the engine's thread.
    func attach(_ point: PointInTime) {
        state.withState { state in
            precondition(state.point == nil, "a drive has one job at a time")
            state.point = point
            state.requests.markBefore()
            state.waiters.wake()
        }
    }

    /// True while requests of before are in flight.
    var isAnyBefore: Bool { state.value.requests.beforeCount > 0 }

    /// Nothing is saved for `point` any more.
    func detach(_ point: PointInTime) {
        guard state.value.point === point else { return }
        state.value.point = nil
        state.value.waiters.wake()
        passOnKept(in: range)
    }

    /// The job goes on in the next agent, and nobody uses the drive any more in this one: what was kept is forgotten, since
    /// it may be needed. False, and nothing is changed, when a request of the guest is in flight.
    func forget(_ point: PointInTime) -> Bool {
        guard state.value.point === point, state.value.requests.count == 0 else { return false }
        state.value.point = nil
        state.value.kept.drop(range)
        state.value.toPassOn = []
        return true
    }

    // MARK: Kept discards

    /// Passes on what is kept in `range` and not needed any more, by a task of the drive's own. Called when clusters are
    /// done and when a job ends.
    func passOnKept(in range: ByteRange) {
        guard state.value.kept.isAnyKept(in: range) else { return }
        state.value.toPassOn.append(range)
        // Many short ones at once: one look at everything is cheaper than to remember them.
        if state.value.toPassOn.count > 256 { state.value.toPassOn = [self.range] }
        guard state.value.passer == nil else { return }
        state.value.passer = Task(executorPreference: engine) {
            await self.passOn()
        }
    }

    /// What is discarded at once: a guest that writes there waits for no more than that.
    private static let passedAtOnce: UInt64 = 16 << 20

    private func passOn() async {
        while let range = state.value.toPassOn.popLast() {
            var offset = range.offset
            while let kept = state.value.kept.next(after: offset)?.clamped(to: range), !kept.isEmpty {
                let (run, isNeeded) = state.value.point?.firstPart(of: kept) ?? (kept, false)
                let part = isNeeded ? run : run.prefix(Self.passedAtOnce)
                offset = part.end
                guard !isNeeded, !isBeforeIn(part) else { continue }
                // In flight like any other from here on, so that the next switch counts it as one of before; but no guest's.
                let request = state.value.requests.begin(part)
                state.value.kept.beginPassing(part)
                // Answered long ago, and advice: the guest loses nothing by an error.
                try? await device.discard(part)
                state.value.kept.endPassing(part)
                state.value.waiters.wake()
                end(request)
            }
        }
        state.value.passer = nil
    }

    private func isBeforeIn(_ range: ByteRange) -> Bool {
        guard let clusterSize = state.value.point?.clusterSize else { return false }
        return state.value.requests.isAnyBefore(in: range, clusterSize: clusterSize)
    }
}
