package import BlockIO

/// A disk whose bytes are the file's own, exactly as many of them.
package final class RawImage: BlockDevice {
    let file: HostFile
    package let size: UInt64
    package let isReadOnly: Bool
    /// Which parts of a file that began as one hole have been written since; nil for a file with a past.
    private let written: EngineIsolated<WrittenParts>?
    /// For a disk whose format was probed.
    private let guardian: FirstSectorGuard?

    /// Takes over `file`, which `close` closes; `isNew` says that it consists of one hole.
    /// With `keepsFormat` requests are refused (`.denied`) that would make it look like another format's.
    init(_ file: HostFile, isReadOnly: Bool, isNew: Bool = false, keepsFormat: Bool = false) {
        self.file = file
        self.isReadOnly = isReadOnly
        size = file.size
        guardian = keepsFormat && !isReadOnly ? FirstSectorGuard(file) : nil
        written = isNew ? EngineIsolated(WrittenParts(size: file.size), engine: file.engine) : nil
    }

    package var name: String { file.name }
    package var engine: any IOEngine { file.engine }
    package var limits: BlockLimits { file.limits }

    package func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try check(range, to: "read")
        try await file.read(range, into: buffer)
    }

    package func readAtOnce(_ range: ByteRange, into buffer: IOSlice) -> Bool {
        range.end <= size && file.readAtOnce(range, into: buffer)
    }

    package var fillsPipes: Bool { file.fillsPipes }

    package func hasCached(_ range: ByteRange) -> Bool { range.end <= size && file.hasCached(range) }

    package func fill(_ pipe: PagePipe, with range: ByteRange) -> Bool {
        range.end <= size && file.fill(pipe, with: range)
    }

    package func beginRead(
        _ range: ByteRange, into buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        range.end <= size && file.beginRead(range, into: buffer, done)
    }

    package func writeAtOnce(_ range: ByteRange, from buffer: IOSlice) -> Bool {
        guard !isReadOnly, range.end <= size, !(guardian?.concerns(range) ?? false) else { return false }
        written?.value.note(range)
        return file.writeAtOnce(range, from: buffer)
    }

    package func beginWrite(
        _ range: ByteRange, from buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        guard !isReadOnly, range.end <= size, !(guardian?.concerns(range) ?? false) else { return false }
        written?.value.note(range)
        return file.beginWrite(range, from: buffer, done)
    }

    package func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try checkWritable(range, to: "write")
        written?.value.note(range)
        guard let guardian, guardian.concerns(range) else { return try await file.write(range, from: buffer) }
        try await guardian.permit(range, "write", writing: buffer) { () async throws(BlockError) in
            try await file.write(range, from: buffer)
        }
    }

    package func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        try checkWritable(range, to: "zero")
        if mayUnmap, let written, !written.value.mayOverlap(range) { return }
        guard let guardian, guardian.concerns(range) else {
            return try await file.writeZeroes(range, mayUnmap: mayUnmap)
        }
        try await guardian.permit(range, "write zeroes to") { () async throws(BlockError) in
            try await file.writeZeroes(range, mayUnmap: mayUnmap)
        }
    }

    package func zeroesQuickly(mayUnmap: Bool) -> Bool { file.zeroesQuickly(mayUnmap: mayUnmap) }

    package func discard(_ range: ByteRange) async throws(BlockError) {
        try checkWritable(range, to: "discard")
        guard let guardian, guardian.concerns(range) else { return try await file.discard(range) }
        try await guardian.permit(range, "discard") { () async throws(BlockError) in
            try await file.discard(range)
        }
    }

    /// Makes `range` share its blocks with the same range of `source`; see `HostFile.clone`.
    func clone(_ range: ByteRange, from source: CloneSource) async throws(BlockError) {
        try checkWritable(range, to: "clone")
        precondition(guardian == nil, "a drive is not cloned to")
        written?.value.note(range)
        try await file.clone(range, from: source)
    }

    package func flush() async throws(BlockError) { try await file.flush() }

    package func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        try check(range, to: "look at")
        return try await file.extents(in: range)
    }

    package func close() async throws(BlockError) { try await file.close() }

    private func checkWritable(_ range: ByteRange, to verb: String) throws(BlockError) {
        guard !isReadOnly else {
            throw BlockError(
                .invalid, "Couldn't \(verb) \(range) of \(name): it is open for reading only", range: range)
        }
        try check(range, to: verb)
    }
}

/// A bit for each MiB of a file: something has been written there.
private struct WrittenParts {
    private static let unit: UInt64 = 1 << 20
    private var words: [UInt64]

    init(size: UInt64) {
        let parts = size.dividedRoundingUp(by: Self.unit)
        words = Array(repeating: 0, count: Int(parts.dividedRoundingUp(by: 64)))
    }

    mutating func note(_ range: ByteRange) {
        var parts = Self.parts(of: range)
        while let part = parts.first {
            let count = min(64 - part % 64, UInt64(parts.count))
            words[Int(part / 64)] |= (UInt64.max >> (64 - count)) << (part % 64)
            parts = parts.dropFirst(Int(count))
        }
    }

    func mayOverlap(_ range: ByteRange) -> Bool {
        var parts = Self.parts(of: range)
        while let part = parts.first {
            let word = words[Int(part / 64)]
            if word == 0 {
                parts = parts.dropFirst(Int(64 - part % 64))
            } else if word & (1 << (part % 64)) != 0 {
                return true
            } else {
                parts = parts.dropFirst()
            }
        }
        return false
    }

    private static func parts(of range: ByteRange) -> Range<UInt64> {
        range.isEmpty ? 0..<0 : range.offset / unit..<range.end.dividedRoundingUp(by: unit)
    }
}
