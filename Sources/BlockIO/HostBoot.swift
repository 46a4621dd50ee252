internal import Glibc

/// The time from one start of this host to the next: what is kept on tmpfs lives as long.
package enum HostBoot {
    /// An identifier that the kernel makes anew at each start. Blocks; throws when /proc does not say.
    package static func identifier() throws(BlockError) -> String {
        let path = "/proc/sys/kernel/random/boot_id"
        guard let file = fopen(path, "re") else { throw BlockError("Couldn't open \(path)", errno: errno) }
        defer { fclose(file) }
        var text = [UInt8](repeating: 0, count: 64)
        let count = fread(&text, 1, text.count, file)
        let identifier = String(decoding: text[..<count].prefix { $0 > 0x20 }, as: UTF8.self)
        guard !identifier.isEmpty else {
            throw BlockError(.inputOutput, "Couldn't read \(path): it is empty")
        }
        return identifier
    }
}
