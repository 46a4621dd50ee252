internal import DriveBackupCLI

@main
enum DriveBackup {
    static func main() async { await CommandLineTool.main() }
}
