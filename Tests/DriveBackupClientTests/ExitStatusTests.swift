import DriveBackupClient
import Testing

@testable import DriveBackupCLI

@Suite("Exit statuses")
struct ExitStatusTests {
    @Test("each code of the agent has its exit status")
    func codes() {
        for code in RPCCode.allCases {
            let expected: Int32 =
                switch code {
                case .ok: 0
                case .invalidArgument: 64
                case .unavailable: 69
                case .permissionDenied, .unauthenticated: 77
                default: 1
                }
            #expect(ExitStatus(RPCStatus(code, "x")).rawValue == expected)
        }
    }

    @Test("a job that was cancelled before it had started was cancelled")
    func cancelledAtStart() {
        #expect(ExitStatus(RPCStatus(.aborted, "x", reason: "JOB_CANCELLED")).rawValue == 4)
        #expect(ExitStatus(RPCStatus(.aborted, "x", reason: "IO_ERROR")).rawValue == 1)
    }

    @Test("each result of a job has its exit status, an unknown one is a failure")
    func results() {
        #expect(ExitStatus(JobResult.completed).rawValue == 0)
        #expect(ExitStatus(JobResult.completedWithErrors).rawValue == 3)
        #expect(ExitStatus(JobResult.failed).rawValue == 1)
        #expect(ExitStatus(JobResult.cancelled).rawValue == 4)
        #expect(ExitStatus(JobResult.unspecified).rawValue == 1)
        #expect(ExitStatus(JobResult(rawValue: 99)).rawValue == 1)
    }

    @Test("a table's columns are aligned whatever is in them")
    func table() {
        var table = Table([("ID", .left), ("SIZE", .right), ("FILE", .left)])
        table.add(["vm1", "1.00 GiB", "/a b"])
        table.add(["磁盘", "", "/x\u{7}\ny"])
        #expect(
            table.lines == [
                "ID        SIZE  FILE",
                "vm1   1.00 GiB  /a b",
                "磁盘         -  /x??y",
            ])
    }
}
