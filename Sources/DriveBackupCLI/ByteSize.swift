/// Sizes and rates as people type and read them. Units are binary: `K` is 1024.
enum ByteSize {
    struct Refusal: Error, Hashable, CustomStringConvertible {
        let description: String
    }

    private static let suffixes: [(letter: Character, shift: Int64)] = [
        ("K", 10), ("M", 20), ("G", 30), ("T", 40),
    ]

    /// The bytes that `text` means: a number, with a fraction only before one of the suffixes K, M, G, T (either
    /// case). What is less than a byte beside whole ones is cut off. At most `Int64.max`.
    static func parse(_ text: String) throws(Refusal) -> Int64 {
        func refusal(_ why: String) -> Refusal {
            Refusal(
                description: "'\(text)' \(why); give bytes or a number with K, M, G or T, for example 50M")
        }
        var digits = text[...]
        var unit: Int64 = 1
        if let last = digits.last,
            let suffix = suffixes.first(where: { String($0.letter) == last.uppercased() })
        {
            unit = 1 << suffix.shift
            digits.removeLast()
        }
        if digits.first == "-" { throw refusal("is negative") }
        let parts = digits.split(separator: ".", omittingEmptySubsequences: false)
        guard (1...2).contains(parts.count), let whole = parts.first, !whole.isEmpty,
            parts.allSatisfy({ $0.utf8.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) } })
        else { throw refusal("is not a size") }
        var fraction = ""
        if parts.count == 2 {
            guard unit > 1, !parts[1].isEmpty else { throw refusal("is not a whole number of bytes") }
            // Below a trillionth of a terabyte there is no byte left to count.
            fraction = String(parts[1].prefix(13))
        }
        guard let number = Int64(whole) else { throw refusal("is too large") }
        let (bytes, overflow) = number.multipliedReportingOverflow(by: unit)
        guard !overflow else { throw refusal("is too large") }
        let (sum, sumOverflow) = bytes.addingReportingOverflow(part(fraction, of: unit))
        guard !sumOverflow else { throw refusal("is too large") }
        // Zero means something else.
        guard sum > 0 || digits.saysZero else { throw refusal("is less than a byte") }
        return sum
    }

    /// `0.<digits>` of `unit`, cut off to whole bytes. At most 13 digits.
    private static func part(_ digits: String, of unit: Int64) -> Int64 {
        guard let numerator = Int64(digits) else { return 0 }
        var denominator: Int64 = 1
        for _ in 0..<digits.utf8.count { denominator *= 10 }
        let product = numerator.multipliedFullWidth(by: unit)
        return denominator.dividingFullWidth(product).quotient
    }

    /// The bytes in the unit that leaves one to four digits before the point: `512 B`, `1.50 GiB`, `10.0 MiB`,
    /// `1000 KiB`. Three digits in all, four where the number needs them; never wider than 8 characters up to 8 EiB.
    static func text(_ bytes: Int64) -> String {
        guard bytes > 0 else { return "0 B" }
        guard bytes >= 1024 else { return "\(bytes) B" }
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        var index = 0
        while index < units.count - 1, bytes >> (10 * Int64(index + 2)) > 0 { index += 1 }
        let shift = 10 * Int64(index + 1)
        let whole = bytes >> shift
        let rest = bytes & (1 << shift - 1)
        let decimals = whole >= 100 ? 0 : whole >= 10 ? 1 : 2
        guard decimals > 0 else { return "\(whole) \(units[index])" }
        let scale: Int64 = decimals == 1 ? 10 : 100
        // Cut off, not rounded: what is shown as done is done.
        let fraction = ((rest >> max(0, shift - 20)) * scale) >> min(shift, 20)
        let digits = String(fraction)
        let padding = String(repeating: "0", count: decimals - digits.utf8.count)
        return "\(whole).\(padding)\(digits) \(units[index])"
    }

    /// A rate: `120 MiB/s`.
    static func rate(_ bytesPerSecond: Int64) -> String { "\(text(bytesPerSecond))/s" }

    /// The bytes as the shortest text that `parse` takes back to them: `50M`, `1000`.
    static func exact(_ bytes: Int64) -> String {
        for suffix in suffixes.reversed() where bytes > 0 && bytes & (1 << suffix.shift - 1) == 0 {
            return "\(bytes >> suffix.shift)\(suffix.letter)"
        }
        return "\(bytes)"
    }
}
