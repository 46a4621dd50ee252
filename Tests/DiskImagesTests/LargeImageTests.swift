internal import BlockIO
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("Large disks")
struct LargeImageTests {
    @Test("a disk of 15 TiB with data here and there is written, looked over and read in bounded memory")
    func fifteenTebibytes() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        let size: UInt64 = 15 << 40
        let places = (0..<300).map { UInt64($0) * (50 << 30) + 65536 * UInt64($0) }
        try await onEngine(.ring) { engine in
            let device = try await TargetImage.create(
                on: try await makeEmptyFile(path, on: engine), format: .qcow2, size: size, backing: nil)
            let buffer = IOBuffer(count: 65536)
            for place in places {
                buffer.bytes.initializeMemory(
                    as: UInt8.self, repeating: UInt8(truncatingIfNeeded: place >> 30 | 1))
                try await device.write(ByteRange(offset: place, length: 65536), from: buffer.slice)
                // What was never written is zero already, and costs nothing.
                try await device.writeZeroes(
                    ByteRange(offset: place + 65536, length: 49 << 30), mayUnmap: true)
            }
            try await device.flush()
            let image = try #require(device as? Qcow2Image)
            #expect(image.isolated.value.pages.count <= 512)
            try await device.close()
        }
        try await checkClean(path)
        try await onEngine(.ring) { engine in
            let image = try await openImage(path, on: engine)
            let data = try await allExtents(of: image.device).filter { !$0.isZero }
            #expect(data.map(\.range.offset) == places)
            #expect(data.allSatisfy { $0.range.length == 65536 && $0.isAllocated })
            let buffer = IOBuffer(count: 65536)
            for place in places {
                try await image.device.read(ByteRange(offset: place, length: 65536), into: buffer.slice)
                let expected = UInt8(truncatingIfNeeded: place >> 30 | 1)
                #expect(buffer.bytes[0] == expected && buffer.bytes[65535] == expected)
            }
            try await image.close()
        }
    }

    @Test("more metadata than the cache holds is written back and read again")
    func smallCache() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        // With clusters of 512 bytes a table describes 32 KiB: 4500 tables are more than the 4096 pages.
        let tables: UInt64 = 4500
        try await onEngine(.ring) { engine in
            let device = try await TargetImage.create(
                on: try await makeEmptyFile(path, on: engine), format: .qcow2, size: tables << 15,
                backing: nil,
                clusterSize: 512)
            let buffer = IOBuffer(count: 512)
            for table in 0..<tables {
                buffer.bytes.storeBigEndian(table, at: 8)
                try await device.write(ByteRange(offset: table << 15, length: 512), from: buffer.slice)
            }
            for table in 0..<tables {
                try await device.read(ByteRange(offset: table << 15, length: 512), into: buffer.slice)
                let found: UInt64 = buffer.bytes.bigEndian(at: 8)
                if found != table { throw TestKitError("Table \(table) leads to the data of \(found)") }
            }
            let image = try #require(device as? Qcow2Image)
            #expect(image.isolated.value.pages.count <= 4096)
            try await device.flush()
            try await device.close()
        }
        try await checkClean(path)
    }

    @Test("sizes that fit no image of these clusters are refused")
    func tooLarge() async throws {
        let directory = try TemporaryDirectory()
        try await onEngine { engine in
            for (size, clusterSize) in [(15 << 40, 512), (1 << 20, 1000), (1 << 20, 256), (1 << 20, 4 << 20)]
                as [(UInt64, UInt64)]
            {
                let file = try await makeEmptyFile(directory.file("\(clusterSize)"), on: engine)
                let error = await #expect(throws: BlockError.self) {
                    _ = try await TargetImage.create(
                        on: file, format: .qcow2, size: size, backing: nil, clusterSize: clusterSize)
                }
                #expect(error?.code == .invalid)
                #expect(file.size == 0)
                try await file.close()
            }
        }
    }
}
