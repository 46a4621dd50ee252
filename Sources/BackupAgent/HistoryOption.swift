/// How long the history is kept, as the command line says it.
package enum HistoryOption {
    /// A number of days, or a number with its unit: `90`, `90d`, `12h`, `4w`. Throws a sentence about what is wrong.
    package static func age(parsing text: String) throws(AgentError) -> Duration {
        let seconds: [Character: Int64] = ["m": 60, "h": 3600, "d": 86400, "w": 7 * 86400]
        let unit = text.last.flatMap { seconds[$0] }
        let digits = unit == nil ? text[...] : text.dropLast()
        guard digits.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }), let number = Int64(digits), number > 0,
            // Some 290 years: what nanoseconds can say.
            number <= Int64.max / 1_000_000_000 / (unit ?? 86400)
        else {
            throw AgentError(
                .fieldInvalid,
                "Couldn't understand the age '\(text)' of the history: give days, or a number with m, h, d or w, as in 90d",
                subject: "history-age")
        }
        return .seconds(number * (unit ?? 86400))
    }
}
