internal import BlockIO
internal import Foundation
internal import Glibc
internal import TestKit
internal import Testing

@testable internal import DiskImages

/// Runs `body` on a new engine, which is shut down afterwards.
func onEngine<Result: Sendable>(
    _ kind: EngineKind = .threads, _ body: @Sendable (any IOEngine) async throws -> Result
) async throws -> Result {
    let engine = try kind.makeEngine(name: "images")
    let result: Swift.Result<Result, any Error> = await engine.run {
        do { return .success(try await body(engine)) } catch { return .failure(error) }
    }
    await engine.shutDown()
    return try result.get()
}

/// An empty file, open for writing and locked as a target is.
func makeEmptyFile(_ path: String, on engine: any IOEngine) async throws -> HostFile {
    guard FileManager.default.createFile(atPath: path, contents: nil) else {
        throw TestKitError("Couldn't make \(path)")
    }
    return try await openForWriting(path, on: engine)
}

func openForWriting(_ path: String, on engine: any IOEngine) async throws -> HostFile {
    try await whenUnlocked {
        try await HostFile.open(
            path, readOnly: false,
            lock: (
                holding: [.consistentRead, .write, .resize], unsharing: [.consistentRead, .write, .resize]
            ),
            on: engine)
    }
}

/// Opens again and again while a lock is in the way: a child process of another test that has been forked and has not
/// yet become its program holds copies of all our descriptors, and so locks that we have given up.
func whenUnlocked<Opened>(_ open: () async throws -> Opened) async throws -> Opened {
    for _ in 0..<10_000 {
        do {
            return try await open()
        } catch let error as BlockError where error.code == .locked {
            _ = await testThreads.blocking { sched_yield() }
        }
    }
    return try await open()
}

/// Opens an image for reading.
func openImage(
    _ path: String, format: ImageFormat? = nil, gate: ImageGate = .open, on engine: any IOEngine
) async throws -> OpenImage {
    try await whenUnlocked {
        try await OpenImage.open(path, format: format, readOnly: true, gate: gate, on: engine)
    }
}

/// Everything that a device holds.
func contents(of device: any BlockDevice, piece: UInt64 = 1 << 20) async throws -> [UInt8] {
    var bytes: [UInt8] = []
    var rest = device.range
    let buffer = IOBuffer(count: Int(piece))
    while !rest.isEmpty {
        let part = rest.prefix(piece)
        let slice = buffer[0..<Int(part.length)]
        try await device.read(part, into: slice)
        bytes += Array(slice.bytes)
        rest = rest.dropFirst(part.length)
    }
    return bytes
}

/// Fails unless qemu-img finds no error and no leak.
func checkClean(_ path: String) async throws {
    let result = try await qemuImg(["check", "-f", "qcow2", path], expecting: nil)
    guard result.status == 0, result.output.contains("No errors were found") else {
        throw TestKitError("qemu-img check of \(path): \(result.output)\(result.error)")
    }
}

func bytes(of path: String) throws -> [UInt8] {
    Array(try Data(contentsOf: URL(fileURLWithPath: path)))
}

func write(_ bytes: [UInt8], to path: String) throws {
    try Data(bytes).write(to: URL(fileURLWithPath: path))
}

/// Runs qemu-io commands on an image.
func qemuIO(_ path: String, format: String = "qcow2", _ commands: [String]) async throws {
    let arguments = ["-f", format] + commands.flatMap { ["-c", $0] } + [path]
    let result = try await runProcess("qemu-io", arguments)
    guard result.status == 0, !result.output.contains("failed"), !result.error.contains("failed") else {
        throw TestKitError("qemu-io \(arguments): \(result.output)\(result.error)")
    }
}

/// The bytes that qemu-img finds in an image and its backing files.
func judge(_ path: String, format: String = "qcow2", in directory: TemporaryDirectory) async throws -> [UInt8]
{
    let raw = directory.file("judge-\(UUID().uuidString).raw")
    defer { try? FileManager.default.removeItem(atPath: raw) }
    try await qemuImg(["convert", "-f", format, "-O", "raw", path, raw])
    return try bytes(of: raw)
}

func expectEqual(_ found: [UInt8], _ expected: [UInt8], _ what: String) throws {
    guard found != expected else { return }
    let index = zip(found, expected).enumerated().first { $0.element.0 != $0.element.1 }?.offset
    throw TestKitError(
        "\(what): \(found.count) and \(expected.count) bytes, first difference at "
            + (index.map { "\($0): \(found[$0]), not \(expected[$0])" } ?? "the end"))
}

/// Reads the whole image with us.
func readWithUs(
    _ path: String, format: ImageFormat? = .qcow2, piece: UInt64 = 1 << 20, kind: EngineKind = .threads
) async throws -> [UInt8] {
    try await onEngine(kind) { engine in
        let image = try await openImage(path, format: format, on: engine)
        let found = try await contents(of: image.device, piece: piece)
        try await image.close()
        return found
    }
}

func readHeader(of path: String) async throws -> Qcow2Header {
    try await onEngine { engine in
        let file = try await openForWriting(path, on: engine)
        let header = try await ImageFiles.readHeader(file)
        try await file.close()
        return header
    }
}

let canUseLoopDevices = getuid() == 0 && access("/dev/loop-control", R_OK | W_OK) == 0

/// Calls `body` with a block device whose bytes are those of the file, and takes it away afterwards, whatever comes.
func onLoopDevice(over path: String, _ body: (String) async throws -> Void) async throws {
    let made = try await runProcess("losetup", ["--find", "--show", path])
    try #require(made.status == 0, Comment(rawValue: made.error))
    let device = made.output.trimmingCharacters(in: .whitespacesAndNewlines)
    let result: Swift.Result<Void, any Error>
    do { result = .success(try await body(device)) } catch { result = .failure(error) }
    #expect(try await runProcess("losetup", ["--detach", device]).status == 0)
    try result.get()
}
