internal import Testing

/// A rule about the text of the sources: what is wrong with a file, a line number and a sentence for each place.
struct TidyRule: Sendable, CustomTestStringConvertible {
    let name: String
    /// A file that the rule must find fault with, and its path.
    let badExample: (path: String, text: String)
    /// A file that looks like the bad one and is fine.
    let goodExample: (path: String, text: String)
    let check: @Sendable (SourceText) -> [Int]

    var testDescription: String { name }

    func violations(of file: SourceText) -> [String] {
        check(file).map { "\(file.path):\($0 + 1): \(name): \(file.lines[$0].trimmingSpaces)" }
    }
}

extension TidyRule {
    static let all = [
        noBlockingCalls, noForce, unsafeIsProved, triedErrorsAreExplained, tasksHaveOwners, filesAreShort,
    ]

    /// Swift's pool has as many threads as cores; one blocked is half of a small machine.
    static let noBlockingCalls = TidyRule(
        name: "a call that blocks its thread, outside the I/O engines",
        badExample: (
            "Sources/BackupAgent/A.swift", "func f() {\n    lock.wait()\n    _ = pread(fd, p, 1, 0)\n}"
        ),
        goodExample: (
            "Sources/BackupAgent/A.swift",
            "// pread(2) and .wait()\nlet s = \"sleep(1)\"; try await Task.sleep(for: s)\n"
                + "_ = await done.wait()\nprivate func sleep(_ d: Duration) async {"
        ),
        check: { file in
            guard !file.isTest, file.module != "BlockIO" else { return [] }
            let suspects = file.indices(
                matching:
                    #/(?:^|[^.\w])(?:pread|pwrite|preadv2?|pwritev2?|sleep|usleep|nanosleep|sem_wait)\s*\(|(?:Glibc|Foundation)\.(?:sleep|pread|pwrite)|\.wait\(\)|DispatchSemaphore|DispatchGroup|NSCondition|Thread\.sleep|\.sync\s*(?:\{|\(execute)/#
            )
            // What is awaited gives its thread away while it waits, and what is declared is not called.
            return suspects.filter { file.code[$0].firstMatch(of: #/\bawait\b|\bfunc\b/#) == nil }
        })

    /// A crash of the agent is a crash of every backup on the host.
    static let noForce = TidyRule(
        name: "`try!`, `as!` or `!` that can trap",
        badExample: (
            "Sources/A/A.swift", "let a = try! b()\nlet c = d as! E\nlet f = g!\nlet h = i[0]!.j\nvar k: L!"
        ),
        goodExample: ("Sources/A/A.swift", "if !a && b != c { d(!e) } // f!\nlet g = h ? !i : \"\\(j) k!\""),
        check: { file in
            guard !file.isTest else { return [] }
            return file.indices(matching: #/\btry!|\bas!|[\w)\]}>?]!(?![=])/#)
        })

    /// Whoever takes the compiler's proof away gives one.
    static let unsafeIsProved = TidyRule(
        name: "`@unchecked Sendable` or `nonisolated(unsafe)` without a SAFETY comment",
        badExample: ("Sources/A/A.swift", "// All is well.\nfinal class A: @unchecked Sendable {\n}"),
        goodExample: (
            "Sources/A/A.swift",
            "// SAFETY: the lock guards `a`.\n@frozen\nfinal class A: @unchecked Sendable {\n}"
        ),
        check: { file in
            file.indices(matching: #/@unchecked\s+Sendable|nonisolated\(unsafe\)/#).filter { index in
                if file.lines[index...].prefix(2).contains(where: { $0.contains("SAFETY:") }) { return false }
                var above = index - 1
                while above >= 0 {
                    let line = file.lines[above].trimmingSpaces
                    guard line.hasPrefix("//") || line.hasPrefix("@") || file.code[above].hasNoEndOfStatement
                    else { break }
                    if line.contains("SAFETY:") { return false }
                    above -= 1
                }
                return true
            }
        })

    /// An error that is thrown away on purpose says why.
    static let triedErrorsAreExplained = TidyRule(
        name: "`try?` without a comment beside or above it",
        badExample: ("Sources/A/A.swift", "let a = 1\nlet b = try? c()"),
        goodExample: ("Sources/A/A.swift", "// Gone is as good as removed.\ntry? a()\ntry? b() // As above."),
        check: { file in
            guard !file.isTest else { return [] }
            return file.indices(matching: #/\btry\?/#).filter { index in
                if file.lines[index].contains("//") { return false }
                return index == 0 || !file.lines[index - 1].trimmingSpaces.hasPrefix("//")
            }
        })

    /// A task that nobody awaits or cancels outlives its reason.
    static let tasksHaveOwners = TidyRule(
        name: "a `Task` that nobody keeps, without a comment above it that says who awaits or cancels it",
        badExample: (
            "Sources/A/A.swift", "func f() {\n    Task { await g() }\n    _ = Task.detached { h() }\n}"
        ),
        goodExample: (
            "Sources/A/A.swift",
            "let a = Task { await b() }\n// Ends with the process.\nTask { await c() }\nown(\n    d,\n    Task { await e() })"
        ),
        check: { file in
            guard !file.isTest else { return [] }
            return file.indices(matching: #/^\s*(?:_\s*=\s*)?Task(?:\.detached|\.immediate)?\s*(?:\{|\()/#)
                .filter { index in
                    guard index > 0 else { return true }
                    let above = file.lines[index - 1].trimmingSpaces
                    // An argument: whoever is called keeps it.
                    return !above.hasPrefix("//") && !above.hasSuffix(",") && !above.hasSuffix("(")
                }
        })

    /// Beyond this there is a second idea in the file.
    static let filesAreShort = TidyRule(
        name: "a file of more than 450 lines",
        badExample: ("Sources/A/A.swift", String(repeating: "let a = 1\n", count: 451)),
        goodExample: ("Sources/A/A.swift", String(repeating: "let a = 1\n", count: 450)),
        check: { file in
            let count = file.lines.last == "" ? file.lines.count - 1 : file.lines.count
            return count > 450 ? [450] : []
        })
}

extension SourceText {
    /// The lines whose code matches, counted from 0.
    fileprivate func indices(matching pattern: some RegexComponent) -> [Int] {
        code.indices.filter { code[$0].firstMatch(of: pattern) != nil }
    }
}

extension String {
    fileprivate var trimmingSpaces: String {
        String(drop { $0 == " " }.reversed().drop { $0 == " " }.reversed())
    }

    /// The line opens a declaration that goes on below: its braces and brackets are not closed, and it does not end one.
    fileprivate var hasNoEndOfStatement: Bool {
        let line = trimmingSpaces
        return !line.isEmpty && !line.contains("}") && !line.contains("{") && !line.contains("=")
    }
}
