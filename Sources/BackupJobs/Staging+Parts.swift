internal import BlockIO

extension Staging {
    /// The runs of whole blocks that are not zero.
    func dataParts(of range: ByteRange, _ buffer: IOSlice) -> [(range: ByteRange, bytes: IOSlice)] {
        var parts: [(range: ByteRange, bytes: IOSlice)] = []
        var start = 0
        while start < buffer.count {
            var end = min(start + Int(JobRecord.blockSize), buffer.count)
            let isZero = ZeroDetection.isZero(buffer[start..<end].bytes)
            while end < buffer.count {
                let next = min(end + Int(JobRecord.blockSize), buffer.count)
                guard ZeroDetection.isZero(buffer[end..<next].bytes) == isZero else { break }
                end = next
            }
            if !isZero {
                let part = ByteRange(offset: range.offset + UInt64(start), length: UInt64(end - start))
                parts.append((part, buffer[start..<end]))
            }
            start = end
        }
        return parts
    }
}
