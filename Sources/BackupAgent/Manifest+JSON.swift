internal import BackupJobs
internal import BlockIO
internal import DiskImages

// One member a line, one extent a line: large manifests stay readable, and can be compared with diff.

extension Manifest {
    /// With what every manifest begins.
    static let mark = "{\n\"manifest\":\"drive-backup\",\n"
    /// No manifest has more bytes. All that can be covered of a drive of 16 TiB fits, however scattered: 16,384 extents with
    /// a bitmap of 4,096 digits each, and all missing ranges. Of a larger drive what is scattered that much does not.
    static let largest = 96 << 20

    // MARK: Writing

    /// The manifest as it is written; throws `.unsupported` where it would be one that nobody reads again.
    func encodedWithinBounds() throws(BlockError) -> [UInt8] {
        let bytes = encoded
        guard bytes.count <= Self.largest else {
            throw BlockError(
                .unsupported,
                "Couldn't make the manifest of \(target): what the backup covers of the drive is scattered so much that it "
                    + "would have \(bytes.count) bytes, and \(Self.largest) are possible (a backup of sync full is not "
                    + "scattered)")
        }
        return bytes
    }

    /// The manifest as it is written.
    var encoded: [UInt8] {
        var text = Self.mark
        func add(_ name: String, _ value: String) { text += "\"\(name)\":\(value),\n" }
        add("version", "\(Self.version)")
        add("state", state.rawValue.asJSON)
        add("id", id.asJSON)
        add("job", job.asJSON)
        add("drive", drive.asJSON)
        add("target", target.asJSON)
        add("format", format.rawValue.asJSON)
        add("sync", sync.word.asJSON)
        add("size", "\(size)")
        add("point_in_time", "\(pointInTime)")
        if let parent {
            let id = parent.id.map { ",\"id\":\($0.asJSON)" } ?? ""
            add("parent", "{\"path\":\(parent.path.asJSON),\"format\":\(parent.format.rawValue.asJSON)\(id)}")
        }
        if missingBytes > 0 {
            add("missing_bytes", "\(missingBytes)")
            let ranges = missing.map { "{\"offset\":\($0.offset),\"length\":\($0.length)}" }
            add("missing", "[\n\(ranges.joined(separator: ",\n"))\n]")
        }
        if isCloned { add("cloned", "true") }
        if let content {
            add("checksum", content.algorithm.rawValue.asJSON)
            add("block_size", "\(ContentDigests.blockSize)")
            add("extent_size", "\(content.extentSize)")
            text += "\"extents\":["
            for (index, entry) in content.entries.enumerated() {
                text += (index == 0 ? "\n" : ",\n") + Self.line(entry, content)
            }
            text += "\n],\n"
        }
        // The last one, so that no comma is left over; a text that was cut off lacks it.
        return Array((text + "\"end\":true\n}\n").utf8)
    }

    private static func line(_ entry: ContentDigests.Entry, _ content: ContentDigests) -> String {
        let bytes = content.bytes(ofExtents: entry.extents)
        switch entry {
        case .zeroes: return "{\"offset\":\(bytes.offset),\"length\":\(bytes.length),\"zero\":true}"
        case .extent(let extent):
            var line = "{\"offset\":\(bytes.offset),\"digest\":\"\(extent.digest.hexadecimal)\""
            if let covered = extent.covered {
                line += coverage(covered, count: content.blocks(of: extent.number).count)
            }
            return line + "}"
        }
    }

    /// Runs, or a bit for each block: whatever is shorter.
    private static func coverage(_ runs: [Range<Int>], count: Int) -> String {
        let bytes = (count + 7) / 8
        if let words = words(runs, atMost: bytes * 2) { return ",\"blocks\":\"\(words)\"" }
        var bits = [UInt8](repeating: 0, count: bytes)
        for block in runs.joined() { bits[block / 8] |= 1 << UInt8(block % 8) }
        return ",\"bitmap\":\"\(bits.hexadecimal)\""
    }

    /// The runs as a text, unless it is longer than `limit`.
    private static func words(_ runs: [Range<Int>], atMost limit: Int) -> String? {
        var text = ""
        for run in runs {
            if !text.isEmpty { text += "," }
            text += run.count == 1 ? "\(run.lowerBound)" : "\(run.lowerBound)-\(run.upperBound - 1)"
            guard text.utf8.count <= limit else { return nil }
        }
        return text
    }

    // MARK: Reading

    /// Why a text is no manifest that is read here.
    struct Malformed: Error, Sendable, Hashable {
        var reason: String
        /// It is one of a later version.
        var isUnknownVersion = false
    }

    /// The text may have been made by anybody: everything is checked.
    init(decoding bytes: [UInt8]) throws(Malformed) {
        guard bytes.count <= Self.largest else {
            throw Malformed(reason: "it has more than \(Self.largest) bytes")
        }
        let value: JSONValue
        do throws(JSONValue.Failure) { value = try JSONValue(parsing: bytes) } catch {
            throw Malformed(reason: "\(error.reason) (at byte \(error.position))")
        }
        let root = try Members(value, "the text")
        guard try root.text("manifest") == "drive-backup" else {
            throw Malformed(reason: "it is not one of drive-backup")
        }
        let version = try root.number("version")
        guard version == UInt64(Self.version) else {
            throw Malformed(
                reason: "it has the version \(version), and \(Self.version) is known", isUnknownVersion: true)
        }
        guard let state = State(rawValue: try root.text("state")) else {
            throw Malformed(reason: "its state is not known")
        }
        guard let format = ImageFormat(rawValue: try root.text("format")),
            let sync = BackupSync(word: try root.text("sync"))
        else { throw Malformed(reason: "its format or its sync mode is not known") }
        self.init(
            state: state, id: try root.text("id"), job: try root.text("job"), drive: try root.text("drive"),
            target: try root.text("target"), format: format, sync: sync, size: try root.number("size"),
            pointInTime: Int64(clamping: try root.number("point_in_time")))
        guard size <= BackupJob.largestDrive else { throw Malformed(reason: "its size is too large") }
        if let parent = root.optional("parent") { self.parent = try Parent(try Members(parent, "parent")) }
        if let list = root.optional("missing") {
            missingBytes = try root.number("missing_bytes")
            missing = try Self.missing(list, size: size)
        }
        guard state == .complete else { return }
        guard case .bool(true)? = root.optional("end") else { throw Malformed(reason: "its end is missing") }
        if case .bool(true)? = root.optional("cloned") {
            guard sync == .full, format == .raw else {
                throw Malformed(reason: "only a full backup to a raw image can be cloned")
            }
            isCloned = true
            return
        }
        let content = try Self.content(root, size: size)
        // Whoever cuts entries out of a manifest must not make a backup whole by that.
        guard sync != .full || content.isAllCovered(but: missing) || isMissingCut else {
            throw Malformed(reason: "its sync mode is full, and it has no digests of a part of the drive")
        }
        self.content = content
    }

    /// More is missing than is listed.
    private var isMissingCut: Bool {
        missing.count == Self.mostMissing && missingBytes > missing.reduce(0) { $0 + $1.length }
    }

    private static func missing(_ list: JSONValue, size: UInt64) throws(Malformed) -> [ByteRange] {
        guard case .list(let items) = list, items.count <= mostMissing else {
            throw Malformed(reason: "its missing ranges are no list, or too many")
        }
        var ranges: [ByteRange] = []
        for item in items {
            let members = try Members(item, "a missing range")
            let (offset, length) = (try members.number("offset"), try members.number("length"))
            guard offset >= ranges.last?.end ?? 0, offset <= size, length <= size - offset else {
                throw Malformed(reason: "its missing ranges overlap, or lie beyond its size")
            }
            ranges.append(ByteRange(offset: offset, length: length))
        }
        return ranges
    }

    private static func content(_ root: Members, size: UInt64) throws(Malformed) -> ContentDigests {
        guard let algorithm = DigestAlgorithm(rawValue: try root.text("checksum")) else {
            throw Malformed(reason: "its kind of checksum is not known")
        }
        let (block, extent) = (try root.number("block_size"), try root.number("extent_size"))
        // An extent's digests are in memory at once.
        guard block == ContentDigests.blockSize, extent.nonzeroBitCount == 1, extent >= block,
            extent <= ContentDigests.extentSize(forDrive: size),
            size.dividedRoundingUp(by: extent) <= ContentDigests.mostExtents * 4
        else { throw Malformed(reason: "its sizes of blocks and extents make no sense") }
        var content = ContentDigests(algorithm: algorithm, driveSize: size, extentSize: extent)
        guard case .list(let items)? = root.optional("extents") else {
            throw Malformed(reason: "its extents are no list")
        }
        var next = 0
        for item in items {
            let entry = try Self.entry(try Members(item, "an extent"), content)
            guard entry.extents.lowerBound >= next, entry.extents.upperBound <= content.extentCount else {
                throw Malformed(reason: "its extents overlap, or lie beyond its size")
            }
            next = entry.extents.upperBound
            content.entries.append(entry)
        }
        return content
    }

    private static func entry(
        _ members: Members, _ content: ContentDigests
    ) throws(Malformed) -> ContentDigests.Entry {
        let offset = try members.number("offset")
        guard offset.isMultiple(of: content.extentSize), offset < content.driveSize else {
            throw Malformed(reason: "an extent does not begin where one does")
        }
        let first = Int(offset / content.extentSize)
        if case .bool(true)? = members.optional("zero") {
            let length = try members.number("length")
            guard length > 0, length <= content.driveSize - offset,
                length.isMultiple(of: content.extentSize) || offset + length == content.driveSize
            else { throw Malformed(reason: "a run of zeroes does not end where an extent does") }
            return .zeroes(first..<first + Int(length.dividedRoundingUp(by: content.extentSize)))
        }
        guard let digest = [UInt8](hexadecimal: try members.text("digest")),
            digest.count == content.algorithm.length
        else { throw Malformed(reason: "a digest is none of \(content.algorithm.rawValue)") }
        let count = content.blocks(of: first).count
        var covered: [Range<Int>]?
        if case .text(let runs)? = members.optional("blocks") {
            covered = try Self.runs(runs, count: count)
        } else if case .text(let bits)? = members.optional("bitmap") {
            covered = try Self.runs(bitmap: bits, count: count)
        }
        return .extent(.init(number: first, digest: digest, covered: covered))
    }

    private static func runs(_ text: String, count: Int) throws(Malformed) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        for word in text.split(separator: ",", omittingEmptySubsequences: false) {
            let ends = word.split(separator: "-", omittingEmptySubsequences: false).map { Int($0) }
            guard (1...2).contains(ends.count), let first = ends[0], let last = ends[ends.count - 1],
                first >= runs.last?.upperBound ?? 0, last >= first, last < count
            else { throw Malformed(reason: "the covered blocks of an extent make no sense") }
            runs.append(first..<last + 1)
        }
        return runs
    }

    private static func runs(bitmap text: String, count: Int) throws(Malformed) -> [Range<Int>] {
        guard let bits = [UInt8](hexadecimal: text), bits.count == (count + 7) / 8 else {
            throw Malformed(reason: "the covered blocks of an extent make no sense")
        }
        var runs: [Range<Int>] = []
        for block in 0..<count where bits[block / 8] & 1 << UInt8(block % 8) != 0 {
            if let last = runs.last, last.upperBound == block {
                runs[runs.count - 1] = last.lowerBound..<block + 1
            } else {
                runs.append(block..<block + 1)
            }
        }
        guard !runs.isEmpty else { throw Malformed(reason: "the covered blocks of an extent make no sense") }
        return runs
    }

    /// An object's members, which say what is wrong with them.
    struct Members {
        private let members: [String: JSONValue]
        private let what: String

        init(_ value: JSONValue, _ what: String) throws(Malformed) {
            guard case .object(let members) = value else { throw Malformed(reason: "\(what) is no object") }
            (self.members, self.what) = (members, what)
        }

        func optional(_ name: String) -> JSONValue? { members[name] }

        func text(_ name: String) throws(Malformed) -> String {
            guard case .text(let text)? = members[name], text.utf8.count <= 65536 * 16, !text.contains("\0")
            else {
                throw Malformed(reason: "\(what) has no text \"\(name)\"")
            }
            return text
        }

        func number(_ name: String) throws(Malformed) -> UInt64 {
            guard case .number(let number)? = members[name], number >= 0 else {
                throw Malformed(reason: "\(what) has no number \"\(name)\"")
            }
            return UInt64(number)
        }
    }
}

extension Manifest.Parent {
    fileprivate init(_ members: Manifest.Members) throws(Manifest.Malformed) {
        guard let format = ImageFormat(rawValue: try members.text("format")) else {
            throw Manifest.Malformed(reason: "its parent's format is not known")
        }
        self.init(path: try members.text("path"), format: format)
        if case .text(let id)? = members.optional("id") { self.id = id }
    }
}

extension [UInt8] {
    /// Two digits a byte.
    var hexadecimal: String {
        let digits = [UInt8]("0123456789abcdef".utf8)
        return String(unsafeUninitializedCapacity: count * 2) { text in
            for (index, byte) in enumerated() {
                text[index * 2] = digits[Int(byte >> 4)]
                text[index * 2 + 1] = digits[Int(byte & 15)]
            }
            return count * 2
        }
    }

    init?(hexadecimal text: String) {
        let digits = text.utf8.map { Character(Unicode.Scalar($0)).hexDigitValue }
        guard digits.count.isMultiple(of: 2) else { return nil }
        self = []
        reserveCapacity(digits.count / 2)
        for index in stride(from: 0, to: digits.count, by: 2) {
            guard let high = digits[index], let low = digits[index + 1] else { return nil }
            append(UInt8(high << 4 | low))
        }
    }
}
