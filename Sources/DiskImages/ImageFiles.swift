internal import BlockIO

/// What is read from a file before it is known what it is. Runs on the file's engine.
enum ImageFiles {
    static func probe(_ file: HostFile) async throws(BlockError) -> ImageFormat {
        let start = try await readStart(of: file, upTo: UInt64(ImageProbe.length))
        return try ImageProbe.probe(UnsafeRawBufferPointer(start.bytes), path: file.name)
    }

    static func readHeader(_ file: HostFile) async throws(BlockError) -> Qcow2Header {
        let start = try await readStart(of: file, upTo: 512)
        let wanted = Qcow2HeaderParser.wantedBytes(UnsafeRawBufferPointer(start.bytes))
        let whole = try await readStart(of: file, upTo: wanted)
        return try Qcow2HeaderParser.parse(
            UnsafeRawBufferPointer(whole.bytes), fileSize: file.size, name: file.name)
    }

    private static func readStart(of file: HostFile, upTo count: UInt64) async throws(BlockError) -> IOBuffer
    {
        let range = ByteRange(offset: 0, length: min(count, file.size))
        let buffer = IOBuffer(count: Int(range.length))
        try await file.read(range, into: buffer.slice)
        return buffer
    }
}
