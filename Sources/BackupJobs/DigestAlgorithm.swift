package import BlockIO
internal import CCrypto
internal import CXXHash

/// How content is told from other content.
package enum DigestAlgorithm: String, Sendable, Hashable, Codable, CaseIterable {
    /// Finds damage, at the speed of memory.
    case xxh3 = "xxh3-128"
    /// Finds forgery, too.
    case sha256 = "sha-256"

    /// The length of a digest in bytes.
    package var length: Int {
        switch self {
        case .xxh3: 16
        case .sha256: 32
        }
    }

    /// A digest of many bytes is worth a thread of its own.
    var isSlow: Bool { self == .sha256 }

    /// Writes the digest of `bytes` to `output`, which has `length` bytes. Throws `.unsupported` when the system's library
    /// does not have the algorithm.
    func digest(
        _ bytes: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer
    ) throws(BlockError) {
        precondition(output.count == length, "a digest has its length")
        switch self {
        case .xxh3:
            let hash = cxxhash_xxh3_128(bytes.baseAddress, bytes.count)
            // The canonical form, which other programs print.
            output.storeBytes(of: hash.high64.bigEndian, as: UInt64.self)
            output.storeBytes(of: hash.low64.bigEndian, toByteOffset: 8, as: UInt64.self)
        case .sha256:
            let start = output.bindMemory(to: UInt8.self).baseAddress
            guard EVP_Digest(bytes.baseAddress, bytes.count, start, nil, EVP_sha256(), nil) == 1 else {
                throw BlockError(.unsupported, "Couldn't compute a SHA-256 digest: libcrypto refuses to")
            }
        }
    }

    /// The digest of `bytes`.
    func digest(_ bytes: [UInt8]) throws(BlockError) -> [UInt8] {
        let digest = bytes.withUnsafeBytes { bytes in
            Result { () throws(BlockError) in try self.digest(bytes) }
        }
        return try digest.get()
    }

    /// The digest of `bytes`.
    package func digest(_ bytes: UnsafeRawBufferPointer) throws(BlockError) -> [UInt8] {
        var digest = [UInt8](repeating: 0, count: length)
        var failure: BlockError?
        digest.withUnsafeMutableBytes { output in
            do throws(BlockError) { try self.digest(bytes, into: output) } catch { failure = error }
        }
        if let failure { throw failure }
        return digest
    }
}
