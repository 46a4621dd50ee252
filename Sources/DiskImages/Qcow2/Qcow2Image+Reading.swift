package import BlockIO

extension Qcow2Image {
    package func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        precondition(UInt64(buffer.count) == range.length, "a buffer is as long as its range")
        try check(range, to: "read")
        let ticket = isolated.value.requests.begin()
        defer { isolated.value.requests.end(ticket) }
        try await readMapped(range, into: buffer)
    }

    package func readAtOnce(_ range: ByteRange, into buffer: IOSlice) -> Bool {
        guard range.end <= size else { return false }
        var done: UInt64 = 0
        while done < range.length {
            let rest = range.dropFirst(done)
            guard let run = runInMemory(of: rest),
                readAtOnce(
                    rest.prefix(run.length), run.mapping, into: buffer[Int(done)..<Int(done + run.length)])
            else { return false }
            done += run.length
        }
        return true
    }

    private func readAtOnce(_ range: ByteRange, _ mapping: ClusterMapping, into buffer: IOSlice) -> Bool {
        switch mapping {
        case .compressed: return false
        case .zero, .zeroAllocated:
            buffer.bytes.fillWithZeroes()
            return true
        case .data(let host, _):
            return file.readAtOnce(ByteRange(offset: host, length: range.length), into: buffer)
        case .unallocated:
            switch backing {
            case .none:
                buffer.bytes.fillWithZeroes()
                return true
            case .open(let device): return device.readAtOnce(range, into: buffer)
            case .notOpen: return false
            }
        }
    }

    package func beginRead(
        _ range: ByteRange, into buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        guard range.end <= size else { return false }
        let device: any BlockDevice
        let place: ByteRange
        switch mappingInMemory(of: range) {
        case .data(let host, _): (device, place) = (file, ByteRange(offset: host, length: range.length))
        case .unallocated:
            guard case .open(let below) = backing else { return false }
            (device, place) = (below, range)
        case .none, .compressed, .zero, .zeroAllocated: return false
        }
        // The cluster is not used for anything else meanwhile.
        let ticket = isolated.value.requests.begin()
        let hasBegun = device.beginRead(place, into: buffer) { [isolated] end in
            isolated.value.requests.end(ticket)
            done(end)
        }
        if !hasBegun { isolated.value.requests.end(ticket) }
        return hasBegun
    }

    func readMapped(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        var done: UInt64 = 0
        while done < range.length {
            let rest = range.dropFirst(done)
            let run = try await run(at: rest.offset, limit: rest.length)
            let part = rest.prefix(run.length)
            let slice = buffer[Int(done)..<Int(done + part.length)]
            switch run.mapping {
            case .unallocated: try await readBacking(part, into: slice)
            case .zero, .zeroAllocated: slice.bytes.fillWithZeroes()
            case .data(let host, _):
                try await readFile(ByteRange(offset: host, length: part.length), into: slice)
            case .compressed(let cluster): try await readCompressed(cluster, part, into: slice)
            }
            done += part.length
        }
    }

    /// The last cluster of a file may be cut short; what is missing is zero.
    private func readFile(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        let present = range.clamped(to: file.range)
        if present.length < range.length {
            buffer[Int(present.length)..<buffer.count].bytes.fillWithZeroes()
        }
        if !present.isEmpty { try await file.read(present, into: buffer[0..<Int(present.length)]) }
    }

    private func readBacking(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        switch backing {
        case .none:
            buffer.bytes.fillWithZeroes()
        case .open(let device):
            let present = range.clamped(to: device.range)
            if present.length < range.length {
                buffer[Int(present.length)..<buffer.count].bytes.fillWithZeroes()
            }
            if !present.isEmpty { try await device.read(present, into: buffer[0..<Int(present.length)]) }
        case .notOpen(let backingName):
            throw BlockError(
                .unsupported,
                "Couldn't read \(range) of \(name): its backing file \(backingName) is not open",
                range: range)
        }
    }

    private func readCompressed(
        _ cluster: CompressedCluster, _ range: ByteRange, into buffer: IOSlice
    ) async throws(BlockError) {
        // The length is counted in sectors, so that it may reach beyond the end of the file.
        let stored = ByteRange(offset: cluster.host, length: cluster.length).clamped(to: file.range)
        if !isolated.value.decompressions.tryAcquire() {
            await withCheckedContinuation { isolated.value.decompressions.wait($0) }
        }
        defer { isolated.value.decompressions.release() }
        let input = IOBuffer(count: Int(stored.length))
        try await file.read(stored, into: input.slice)
        let isWhole = range.length == clusterSize
        let output = isWhole ? buffer : IOBuffer(count: Int(clusterSize)).slice
        let compression = header.compression
        let failure = await engine.blocking { () -> String? in
            ClusterDecompressor.decompress(input.slice, into: output, compression)
        }
        if let failure {
            // Of one cluster: the tables are as good as before, and so is everything else.
            throw BlockError(
                .inputOutput, "Couldn't read \(range) of \(name): the compressed cluster there \(failure)",
                range: range)
        }
        if !isWhole {
            let start = Int(range.offset % clusterSize)
            buffer.bytes.copyBytesQuickly(
                from: UnsafeRawBufferPointer(output[start..<start + buffer.count].bytes))
        }
    }

    /// Where the data of `range` stands in the file, as far as it is uncompressed.
    func places(of range: ByteRange) async throws(BlockError) -> [ByteRange] {
        try check(range, to: "look at")
        var places: [ByteRange] = []
        var rest = range
        while !rest.isEmpty {
            let run = try await run(at: rest.offset, limit: rest.length)
            if case .data(let host, _) = run.mapping {
                places.append(ByteRange(offset: host, length: run.length))
            }
            rest = rest.dropFirst(run.length)
        }
        return places
    }

    /// The top layer's allocation; where a backing file says what is there, its word on zeroes.
    package func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        try check(range, to: "look at")
        let ticket = isolated.value.requests.begin()
        defer { isolated.value.requests.end(ticket) }
        var extents = ExtentList()
        var rest = range
        var steps = 0
        while !rest.isEmpty, steps < 1024, extents.count < 128 {
            steps += 1
            let run = try await run(at: rest.offset, limit: rest.length)
            let part = rest.prefix(run.length)
            switch run.mapping {
            case .zero, .zeroAllocated: extents.append(part, isZero: true, isAllocated: true)
            case .data, .compressed: extents.append(part, isZero: false, isAllocated: true)
            case .unallocated:
                let isDone = try await appendBacking(part, to: &extents)
                if !isDone { return extents.extents }
            }
            rest = rest.dropFirst(part.length)
        }
        return extents.extents
    }

    /// Adds what the backing file says of `range`; false when it said only a part.
    private func appendBacking(
        _ range: ByteRange, to extents: inout ExtentList
    ) async throws(BlockError) -> Bool {
        switch backing {
        case .none:
            extents.append(range, isZero: true, isAllocated: false)
            return true
        case .notOpen:
            extents.append(range, isZero: false, isAllocated: false)
            return true
        case .open(let device):
            let present = range.clamped(to: device.range)
            if !present.isEmpty {
                var end = present.offset
                for extent in try await device.extents(in: present) {
                    extents.append(extent.range, isZero: extent.isZero, isAllocated: false)
                    end = extent.range.end
                }
                if end < present.end { return false }
            }
            extents.append(range.dropFirst(present.length), isZero: true, isAllocated: false)
            return true
        }
    }
}

/// Extents in order, neighbours of one kind made one.
struct ExtentList {
    private(set) var extents: [Extent] = []
    var count: Int { extents.count }

    mutating func append(_ range: ByteRange, isZero: Bool, isAllocated: Bool) {
        guard !range.isEmpty else { return }
        if let last = extents.last, last.isZero == isZero, last.isAllocated == isAllocated {
            extents[extents.count - 1].range = ByteRange(last.range.offset..<range.end)
        } else {
            extents.append(Extent(range, isZero: isZero, isAllocated: isAllocated))
        }
    }
}
