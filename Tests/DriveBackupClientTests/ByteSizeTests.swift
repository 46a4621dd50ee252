import Testing

@testable import DriveBackupCLI

@Suite("Sizes and rates")
struct ByteSizeTests {
    @Test(
        "a size is bytes, or a number with a binary suffix",
        arguments: [
            ("0", 0), ("1", 1), ("65536", 65536), ("1K", 1024), ("1k", 1024), ("50M", 50 << 20),
            ("50m", 50 << 20),
            ("1.5G", 3 << 29), ("2T", 2 << 40), ("0.5K", 512), ("1.0009765625K", 1025), ("1.99999K", 2047),
            ("0.0K", 0), ("0K", 0), ("0.001K", 1), ("007", 7), ("8388607T", 8_388_607 << 40),
            ("8388607.9999999T", (8_388_607 << 40) + 1099511517824), ("9223372036854775807", Int64.max),
            ("1.12345678901234567890T", 1235253802822),
        ] as [(String, Int64)])
    func parses(text: String, bytes: Int64) throws {
        let parsed = try ByteSize.parse(text)
        #expect(parsed == bytes)
    }

    @Test(
        "what is no size is refused in a sentence",
        arguments: [
            "", "-1", "-5M", "1.5", "1.", "1.K", ".5K", "K", "M", "5MB", "5 M", " 5", "5 ", "+5", "0x10",
            "1e3", "1,5M",
            "9223372036854775808", "8388608T", "9999999999999G", "1.2.3M", "fast", "５M", "--detach", "1P",
            "0.0001K", "5ß", "ŉ",
        ])
    func refuses(text: String) {
        let refusal = #expect(throws: ByteSize.Refusal.self) { try ByteSize.parse(text) }
        #expect(refusal?.description.contains("50M") == true)
    }

    @Test(
        "sizes are shown with three digits in binary units",
        arguments: [
            (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536, "1.50 KiB"),
            (10240, "10.0 KiB"),
            (102_400, "100 KiB"), (1_048_575, "1023 KiB"), (1 << 20, "1.00 MiB"), (20 << 30, "20.0 GiB"),
            (3 << 29, "1.50 GiB"), (15 << 40, "15.0 TiB"), (Int64.max, "7.99 EiB"), (-5, "0 B"),
        ] as [(Int64, String)])
    func shows(bytes: Int64, text: String) {
        #expect(ByteSize.text(bytes) == text)
    }

    @Test("no size is wider than eight columns")
    func width() {
        for shift in 0..<63 {
            let power = Int64(1) << Int64(shift)
            for bytes: Int64 in [power - 1, power, power + 1] {
                #expect(ByteSize.text(bytes).count <= 8)
            }
        }
    }

    @Test(
        "durations are shown in two units",
        arguments: [
            (Duration.milliseconds(-3), "0.0 s"), (.milliseconds(420), "0.4 s"), (.seconds(9.99), "9.9 s"),
            (.seconds(12), "12 s"), (.seconds(185), "3 min 5 s"), (.seconds(7620), "2 h 7 min"),
            (.seconds(273_600), "3 d 4 h"),
        ])
    func durations(duration: Duration, text: String) {
        #expect(TimeText.words(duration) == text)
    }

    @Test(
        "a clock takes at most eight columns",
        arguments: [
            (0, "0:00"), (7, "0:07"), (754, "12:34"), (3600, "1:00:00"), (86399, "23:59:59"),
            (86400, "1d 00h"),
            (Int64.max, ">999d"), (-1, "0:00"),
        ] as [(Int64, String)])
    func clocks(seconds: Int64, text: String) {
        #expect(TimeText.clock(seconds) == text)
        #expect(TimeText.clock(seconds).count <= 8)
    }
}
