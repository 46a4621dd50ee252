internal import BlockIO
internal import CZlib
internal import CZstd

/// Unpacks one compressed cluster. Takes as long as it takes: call it where blocking is allowed.
enum ClusterDecompressor {
    /// Fills `output`; nil when that worked, otherwise what is wrong with the data, as the end of a sentence.
    static func decompress(
        _ input: IOSlice, into output: IOSlice, _ compression: Qcow2Header.Compression
    ) -> String? {
        switch compression {
        case .zlib: inflate(input.bytes, into: output.bytes)
        case .zstd: unpackZstd(input.bytes, into: output.bytes)
        }
    }

    /// A raw deflate stream; what follows it, or goes on beyond a cluster, is not looked at.
    private static func inflate(
        _ input: UnsafeMutableRawBufferPointer, into output: UnsafeMutableRawBufferPointer
    ) -> String? {
        var stream = z_stream()
        // A negative window size means "raw"; 15 bits read all that fewer bits wrote.
        guard inflateInit2_(&stream, -15, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK else {
            return "could not be unpacked for lack of memory"
        }
        defer { inflateEnd(&stream) }
        stream.next_in = input.baseAddress?.assumingMemoryBound(to: UInt8.self)
        stream.avail_in = uInt(input.count)
        stream.next_out = output.baseAddress?.assumingMemoryBound(to: UInt8.self)
        stream.avail_out = uInt(output.count)
        let result = CZlib.inflate(&stream, Z_FINISH)
        if stream.avail_out == 0 && (result == Z_STREAM_END || result == Z_BUF_ERROR || result == Z_OK) {
            return nil
        }
        return result == Z_STREAM_END || result == Z_BUF_ERROR
            ? "ends after \(output.count - Int(stream.avail_out)) bytes" : "is no deflate stream"
    }

    private static func unpackZstd(
        _ input: UnsafeMutableRawBufferPointer, into output: UnsafeMutableRawBufferPointer
    ) -> String? {
        guard let stream = ZSTD_createDStream() else { return "could not be unpacked for lack of memory" }
        defer { ZSTD_freeDStream(stream) }
        // The bound of what hostile data can make the decoder allocate: QEMU writes windows of 2 MiB at most, this is 8.
        ZSTD_DCtx_setParameter(stream, ZSTD_d_windowLogMax, 23)
        var source = ZSTD_inBuffer(src: input.baseAddress, size: input.count, pos: 0)
        var target = ZSTD_outBuffer(dst: output.baseAddress, size: output.count, pos: 0)
        while target.pos < target.size {
            let (before, written) = (source.pos, target.pos)
            let result = ZSTD_decompressStream(stream, &target, &source)
            if ZSTD_isError(result) != 0 { return "is no zstd stream" }
            if target.pos == target.size { break }
            if source.pos == before && target.pos == written { return "ends after \(target.pos) bytes" }
        }
        return nil
    }
}
