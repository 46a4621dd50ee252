internal import Glibc
package import Logging

/// Writes log entries to standard error, one line each.
///
/// Under systemd, which says so in JOURNAL_STREAM, a line begins with the priority that the journal
/// understands and has no time, since the journal knows it.
package struct AgentLog: LogHandler {
    package var metadata: Logger.Metadata = [:]
    package var logLevel: Logger.Level
    private let isJournal: Bool

    package init(level: Logger.Level, isJournal: Bool = getenv("JOURNAL_STREAM") != nil) {
        logLevel = level
        self.isJournal = isJournal
    }

    package subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    package func log(event: LogEvent) {
        let all = metadata.merging(event.metadata ?? [:]) { _, new in new }
        let line = Self.line(
            level: event.level, message: "\(event.message)", metadata: all,
            time: isJournal ? nil : Self.timeNow())
        // One write a line, so that lines of several threads are never mixed; what cannot be written is lost.
        _ = line.withUnsafeBytes { write(STDERR_FILENO, $0.baseAddress, $0.count) }
    }

    /// The bytes of an entry. Control characters are shown as spaces: a line stays one.
    static func line(
        level: Logger.Level, message: String, metadata: Logger.Metadata, time: String?
    ) -> [UInt8] {
        let facts = metadata.sorted { $0.key < $1.key }.map { " \($0.key)=\($0.value)" }.joined()
        let start = time.map { "\($0) \(level.rawValue)" } ?? "<\(priority(level))>"
        let text = time == nil ? "\(start)\(message)\(facts)" : "\(start) \(message)\(facts)"
        return text.utf8.map { $0 < 0x20 || $0 == 0x7f ? 0x20 : $0 } + [0x0a]
    }

    /// syslog's numbers.
    private static func priority(_ level: Logger.Level) -> Int {
        switch level {
        case .trace, .debug: 7
        case .info: 6
        case .notice: 5
        case .warning: 4
        case .error: 3
        case .critical: 2
        }
    }

    /// `2026-01-31T23:59:59.123Z`.
    private static func timeNow() -> String {
        let now = WallClock.now()
        var seconds = time_t(now / 1_000_000_000)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        func padded(_ number: Int, _ width: Int) -> String {
            let text = String(number)
            return String(repeating: "0", count: max(0, width - text.count)) + text
        }
        let date = [(parts.tm_year + 1900, 4), (parts.tm_mon + 1, 2), (parts.tm_mday, 2)]
        let time = [(parts.tm_hour, 2), (parts.tm_min, 2), (parts.tm_sec, 2)]
        return date.map { padded(Int($0.0), $0.1) }.joined(separator: "-") + "T"
            + time.map { padded(Int($0.0), $0.1) }.joined(separator: ":") + "."
            + padded(Int(now / 1_000_000 % 1000), 3) + "Z"
    }
}
