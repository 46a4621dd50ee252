import DiskImages
import DriveBackupRPC
import TestKit
import Testing

@testable import BackupAgent

@Suite("Words of the command line and of clients")
struct OptionTests {
    @Test(
        "a drive option is understood",
        arguments: [
            ("id=vm1,file=/a/b", DriveOption(id: "vm1", file: "/a/b")),
            ("file=/a,,b.raw,id=v", DriveOption(id: "v", file: "/a,b.raw")),
            ("id=v,file=/a,,,format=raw", DriveOption(id: "v", file: "/a,", format: .raw)),
            (
                "id=v,file=/a=b,format=qcow2,read-only=on",
                DriveOption(id: "v", file: "/a=b", format: .qcow2, isReadOnly: true)
            ),
            ("id=v,file=a,read-only=off", DriveOption(id: "v", file: "a")),
            ("id=v,file=a,cache=writeback", DriveOption(id: "v", file: "a")),
            ("cache=none,id=v,file=a", DriveOption(id: "v", file: "a", cache: .none)),
        ])
    func driveOption(text: String, option: DriveOption) throws {
        #expect(try DriveOption(parsing: text) == option)
    }

    @Test(
        "a drive option that makes no sense is refused",
        arguments: [
            "", "vm1", "id=vm1", "file=/a", "id=,file=/a", "id=1a,file=/a", "id=a b,file=/a", "id=a,file=",
            "id=a,file=/a,format=vmdk", "id=a,file=/a,cache=off", "id=a,file=/a,read-only=yes",
            "id=a,id=b,file=/a", "id=a,file=/a,x=y",
            "id=a,file=/a,",
        ])
    func badDriveOption(text: String) {
        #expect(throws: AgentError.self) { try DriveOption(parsing: text) }
    }

    @Test("ids are a letter, then letters, digits, '-', '.' and '_'")
    func identifiers() {
        for id in ["a", "Z9", "vm-1.disk_2", String(repeating: "a", count: 255)] {
            #expect(Identifier.isValid(id), "\(id)")
        }
        for id in ["", "1", "-a", ".a", "a b", "ä", "aé", "a/b", "a\0", String(repeating: "a", count: 256)] {
            #expect(!Identifier.isValid(id), "\(id)")
        }
    }

    @Test("paths are allowed below the directories and nowhere else")
    func access() throws {
        let access = PathAccess.below(["/srv/backup", "/mnt"])
        for path in ["/srv/backup/a", "/srv/backup/a/b", "/mnt/x"] { try access.check(path) }
        for path in ["/srv/backup2/a", "/srv", "/etc/passwd", "/srv/backu"] {
            #expect(throws: AgentError.self) { try access.check(path) }
        }
        try PathAccess.below(["/"]).check("/etc/passwd")
        #expect(throws: AgentError.self) { try PathAccess.nothing.check("/a") }
    }

    @Test("only absolute paths that name a file are taken for targets")
    func targetPaths() throws {
        #expect(try PathPolicy.split("/a/b/c") == ("/a/b", "c"))
        #expect(try PathPolicy.split("/c") == ("/", "c"))
        for path in [
            "", "a", "./a", "/", "/a/", "/a/.", "/a/..", "/a\0b", "/" + String(repeating: "x", count: 5000),
        ] {
            #expect(throws: AgentError.self) { try PathPolicy.split(path) }
        }
    }

    @Test("a request key returns its job for a day, and only for the same request")
    func requestKeys() throws {
        var keys = RequestKeys(bound: 3)
        var spec = BackupSpec(drive: "vm1", target: "/t", sync: .full)
        #expect(try keys.jobs(for: [spec], now: 0) == nil)
        spec.requestKey = "k"
        let kept = keys.remember([spec], jobs: [JobNumber(value: 7)], now: 0)
        #expect(try keys.jobs(for: [spec], now: RequestKeys.lifetime)?.map(\.value) == [7])
        guard case .remembered(let entry) = kept.first else { throw TestKitError("Nothing is kept of a key") }
        var later = RequestKeys([entry])
        #expect(try later.jobs(for: [spec], now: 0)?.map(\.value) == [7], "a restart forgets a key")
        var other = spec
        other.target = "/u"
        #expect(throws: AgentError.self) { try keys.jobs(for: [other], now: 1) }
        #expect(try keys.jobs(for: [other], now: RequestKeys.lifetime + 1) == nil)
        for number in 1...5 {
            spec.requestKey = "k\(number)"
            _ = keys.remember([spec], jobs: [JobNumber(value: UInt64(number))], now: 0)
        }
        spec.requestKey = "k2"
        #expect(try keys.jobs(for: [spec], now: 0) == nil, "the oldest go first")
        spec.requestKey = "k5"
        #expect(try keys.jobs(for: [spec], now: 0)?.map(\.value) == [5])
        #expect(keys.forget(spec, jobs: [JobNumber(value: 99)]).isEmpty, "it stands for another job")
        #expect(keys.forget(spec, jobs: [JobNumber(value: 5)]) == [.forgotten("k5")])
        #expect(try keys.jobs(for: [spec], now: 0) == nil)
    }

    @Test(
        "an export option is understood",
        arguments: [
            ("drive=vm1,listen=unix:/a/b", ExportOption(drive: "vm1", address: "unix:/a/b", name: "vm1")),
            (
                "listen=tcp://[::1]:10809,drive=v,name=the,,disk,writable=off",
                ExportOption(drive: "v", address: "tcp://[::1]:10809", name: "the,disk", isWritable: false)
            ),
            (
                "drive=v,listen=unix:a,,b,writable=on",
                ExportOption(drive: "v", address: "unix:a,b", isWritable: true)
            ),
        ])
    func exportOption(text: String, option: ExportOption) throws {
        #expect(try ExportOption(parsing: text) == option)
    }

    @Test(
        "an export option that makes no sense is refused",
        arguments: [
            "", "vm1", "drive=vm1", "listen=unix:/a", "drive=,listen=unix:/a", "drive=v,listen=",
            "drive=v,listen=/a",
            "drive=v,listen=tls://h:1", "drive=v,listen=tcp://h", "drive=v,listen=unix:/a,writable=yes",
            "drive=v,listen=unix:/a,name=a,name=b", "drive=v,listen=unix:/a,x=y",
            "drive=v,listen=unix:/a,name=\n",
        ])
    func badExportOption(text: String) {
        #expect(throws: AgentError.self) { try ExportOption(parsing: text) }
    }

    @Test(
        "a staging option is understood",
        arguments: [
            ("/a", StagingOption(directory: "/a")), ("/a,,b", StagingOption(directory: "/a,b")),
            ("/a,size=1G", StagingOption(directory: "/a", limit: 1 << 30)),
            ("a/b,size=512", StagingOption(directory: "a/b", limit: 512)),
            ("/a,size=2t", StagingOption(directory: "/a", limit: 2 << 40)),
        ])
    func stagingOption(text: String, option: StagingOption) throws {
        #expect(try StagingOption(parsing: text) == option)
    }

    @Test(
        "a staging option that makes no sense is refused",
        arguments: [
            "", ",size=1G", "/a,size=", "/a,size=0", "/a,size=-1", "/a,size=1X", "/a,size=G", "/a,1G",
            "/a,size=1G,size=2G", "/a,size=9000000T", "/a,size=1.5G",
        ])
    func badStagingOption(text: String) {
        #expect(throws: AgentError.self) { try StagingOption(parsing: text) }
    }

    @Test("every reason has a status that is not OK, and is told to the client by its word")
    func reasons() {
        for reason in AgentError.Reason.allCases {
            let status = AgentError(reason, "Because.", subject: "x").status
            #expect(status.code.rawValue > 0)
            #expect(status.reason == reason.rawValue && status.subject == "x" && status.message == "Because.")
        }
    }
}
