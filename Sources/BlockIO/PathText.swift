/// Paths as the kernel takes them: bytes, with slashes between. For Swift a slash and a mark behind it are one Character, which
/// is none, and two spellings of one letter are equal: neither is so for the kernel.
extension StringProtocol {
    private static var slash: UInt8 { UInt8(ascii: "/") }

    /// It begins with a slash.
    package var isAbsolutePath: Bool { utf8.first == Self.slash }

    package var hasSlash: Bool { utf8.contains(Self.slash) }

    /// The directory `path`, without a slash at its end, or anything below it; both free of links.
    package func isAtOrBelow(_ path: String) -> Bool {
        guard utf8.starts(with: path.utf8) else { return false }
        let rest = utf8.dropFirst(path.utf8.count)
        return rest.isEmpty || rest.first == Self.slash || path == "/"
    }
}

extension String {
    /// Everything before the last slash, and everything behind it; nil when there is none.
    package var splitAtLastSlash: (directory: Substring, name: Substring)? {
        guard let slash = utf8.lastIndex(of: UInt8(ascii: "/")) else { return nil }
        return (self[..<slash], self[utf8.index(after: slash)...])
    }
}
