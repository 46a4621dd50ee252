internal import Testing

@Suite("Architecture")
struct ArchitectureTests {
    @Test("every module imports only what lies below it")
    func arrowsPointDown() throws {
        let files = try Repository.files(["swift"])
        #expect(files.count > 20, "The sources were not found")
        for file in files where !file.module.isEmpty {
            for violation in Layers.violations(of: file) { Issue.record("\(violation)") }
        }
    }

    @Test("an import that points up is found")
    func arrowsThatPointUpAreFound() {
        let up = SourceText(
            path: "Sources/BlockIO/A.swift", text: "internal import DiskImages\n@testable import NIOCore")
        #expect(Layers.violations(of: up).count == 2)
        let sideways = SourceText(
            path: "Sources/BackupJobs/A.swift", text: "package import struct DiskImages.Image")
        #expect(Layers.violations(of: sideways).count == 1)
        let fine = SourceText(
            path: "Sources/BackupJobs/A.swift", text: "// import NIO\nimport BlockIO\nimport Foundation")
        #expect(Layers.violations(of: fine) == [])
        let unknown = SourceText(path: "Sources/Nowhere/A.swift", text: "")
        #expect(Layers.violations(of: unknown).count == 1)
    }

    @Test("the disk side and the wire side never see each other, and only the agent sees both")
    func sidesAreApart() {
        for (module, allowed) in Layers.allowed where !module.hasSuffix("Tests") && module != "BackupAgent" {
            let both =
                !allowed.isDisjoint(with: Layers.diskSide) && !allowed.isDisjoint(with: Layers.wireSide)
            #expect(!both, "\(module) may import modules of both sides")
        }
        for module in Layers.diskSide {
            #expect(Layers.allowed[module]?.isDisjoint(with: Layers.wireSide) == true)
        }
        for module in Layers.wireSide {
            #expect(Layers.allowed[module]?.isDisjoint(with: Layers.diskSide) == true)
        }
    }

    @Test("the sources keep the rule", arguments: TidyRule.all)
    func sourcesAreTidy(rule: TidyRule) throws {
        for file in try Repository.files(["swift"])
        where !file.isGenerated && file.module != "ArchitectureTests" {
            for violation in rule.violations(of: file) { Issue.record("\(violation)") }
        }
    }

    @Test("the rule finds its bad example, and passes its good one", arguments: TidyRule.all)
    func rulesFind(rule: TidyRule) {
        let bad = SourceText(path: rule.badExample.path, text: rule.badExample.text)
        let good = SourceText(path: rule.goodExample.path, text: rule.goodExample.text)
        #expect(rule.violations(of: bad).count == max(1, rule.expectedInBadExample))
        #expect(rule.violations(of: good) == [])
    }

    @Test("prose and literals are no code, what is interpolated into them is")
    func blanking() {
        let text = """
            let a = "b // c" // d
            /* e /* f */ g */ let h = #"i " j"#
            let k = "l \\(m("n") + o) p"
            """
        let file = SourceText(path: "Sources/A/A.swift", text: text)
        #expect(file.lines.count == 3)
        #expect(
            file.code.map { $0.split(separator: " ").joined(separator: " ") } == [
                "let a =", "let h =", "let k = m( ) + o",
            ])
    }
}

extension TidyRule {
    /// How many places of the bad example are bad: each of its lines that is not scaffolding.
    fileprivate var expectedInBadExample: Int {
        switch name {
        case TidyRule.noBlockingCalls.name: 2
        case TidyRule.noForce.name: 5
        case TidyRule.tasksHaveOwners.name: 2
        default: 1
        }
    }
}
