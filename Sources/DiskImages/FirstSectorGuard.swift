internal import BlockIO
internal import Glibc

/// Keeps the first sector of a raw disk, whose format was found by probing, from becoming that of another format
/// (DESIGN.md §7, item 8): by a header of its own making a guest could have any file of the host opened as its backing
/// file.
///
/// Requests that touch the sector go one at a time; each is held against the sector as it would be afterwards, so
/// that it does not matter in how many pieces a header comes.
struct FirstSectorGuard: Sendable {
    private static let length = UInt64(ImageProbe.length)

    private let file: HostFile
    private let lock: EngineIsolated<EngineLock>

    init(_ file: HostFile) {
        self.file = file
        lock = EngineIsolated(EngineLock(), engine: file.engine)
    }

    func concerns(_ range: ByteRange) -> Bool { range.offset < Self.length && !range.isEmpty }

    /// Runs `body`, which gives `range` the content of `buffer`, zeroes without one; throws `.denied` instead when the
    /// disk would look like another format's afterwards.
    func permit(
        _ range: ByteRange, _ verb: String, writing buffer: IOSlice? = nil,
        _ body: () async throws(BlockError) -> Void
    ) async throws(BlockError) {
        if !lock.value.tryAcquire() { await withCheckedContinuation { lock.value.wait($0) } }
        defer { lock.value.release() }
        let sector = ByteRange(offset: 0, length: min(Self.length, file.size))
        let content = IOBuffer(count: Int(sector.length))
        // What a request covers whole need not be readable: that is how a bad sector heals.
        if !range.contains(sector) { try await file.read(sector, into: content.slice) }
        let changed = range.clamped(to: sector)
        let part = content[Int(changed.offset)..<Int(changed.end)].bytes
        if let buffer {
            part.copyBytesQuickly(from: UnsafeRawBufferPointer(buffer[0..<part.count].bytes))
        } else {
            part.fillWithZeroes()
        }
        if let format = ImageProbe.looksLikeOtherFormat(UnsafeRawBufferPointer(content.bytes)) {
            throw BlockError(
                .denied,
                "Couldn't \(verb) \(range) of \(file.name): its first sector would look like an image of format "
                    + "\(format), and its own format, raw, was only probed; say it when the drive is added",
                errno: EPERM,
                range: range)
        }
        try await body()
    }
}
