internal import BlockIO

/// A drive's journal of mappings: made before its first change, replayed after a kill, removed at the end.
extension Qcow2Image {
    /// Uses the journal that a killed agent left behind, if there is one: plays it over the L2 tables and makes that
    /// durable. Called once, when a drive has been opened. Returns what there is to tell about it.
    ///
    /// Throws `.denied` when the image is open for reading only and its journal holds something, `.locked` when others
    /// use the image, `.corrupt` when journal and image do not belong together.
    func recover() async throws(BlockError) -> String? {
        guard let directory = options.journalDirectory, options.rules.journals else { return nil }
        guard let (journal, why) = try await findJournal(in: directory) else { return nil }
        guard let journal else {
            guard !isReadOnly else { return nil }
            try await engine.blockingResult { () throws(BlockError) in try why.file.remove() }
            return "The journal \(why.file.path) of \(name) was removed: \(why.text)"
        }
        guard !journal.isEmpty || !journal.reserve.isEmpty else {
            if !isReadOnly {
                try await engine.blockingResult { () throws(BlockError) in try journal.file.remove() }
            }
            return nil
        }
        if header.version >= 3, header.autoclear & journalBit == 0 {
            return try await drop(journal)
        }
        guard !isReadOnly else {
            // A reserve is a leak that the next writer ends.
            if journal.isEmpty { return nil }
            throw BlockError(
                .denied,
                "Couldn't open \(name) for reading only: what its guest wrote last is in the journal "
                    + "\(journal.file.path) still; open it for writing once, which puts it into the image")
        }
        if let obstacle = header.writeObstacle {
            throw BlockError(
                .unsupported, "Couldn't replay the journal \(journal.file.path) of \(name): \(obstacle)")
        }
        let lock = OpenImage.ownerLock
        try await file.changeLock(holding: lock.holding.union(.write), unsharing: lock.unsharing)
        let count = journal.records.count
        try await replay(journal)
        try await file.changeLock(holding: lock.holding, unsharing: lock.unsharing)
        return "\(count) changes of \(name) were replayed from the journal \(journal.file.path)"
    }

    /// What the journal says is about an image that is no more: to play it would tear what another program wrote.
    private func drop(_ journal: MappingJournal) async throws(BlockError) -> String? {
        if !isReadOnly {
            try await engine.blockingResult { () throws(BlockError) in try journal.file.remove() }
        }
        guard !journal.isEmpty else { return nil }
        return "The journal \(journal.file.path) of \(name) was given up: another program has changed the "
            + "image since, and \(journal.records.count) changes that its guest had made and not flushed are lost"
    }

    /// Whether changes of this image are kept in a journal.
    var keepsJournal: Bool { options.journalDirectory != nil && options.rules.journals }

    /// The autoclear bit that vouches for the journal; version 2 has none, and there the journal's own checks have to do.
    var journalBit: UInt64 { header.version >= 3 ? Qcow2Features.Autoclear.journal : 0 }

    private typealias Worthless = (file: MappedFile, text: String)

    private func findJournal(
        in directory: String
    ) async throws(BlockError) -> (journal: MappingJournal?, why: Worthless)? {
        let identity = await journalIdentity()
        let isMarked = isolated.value.autoclear & journalBit == journalBit
        return try await engine.blockingResult {
            () throws(BlockError) -> (journal: MappingJournal?, why: Worthless)? in
            let file: MappedFile
            do throws(BlockError) {
                file = try MappedFile.open("\(directory)/\(identity.fileName)")
            } catch {
                if error.code == .notFound { return nil }
                throw error
            }
            let bootID = try HostBoot.identifier()
            return
                switch try MappingJournal.examine(
                    file, for: identity, bootID: bootID, isMarked: isMarked)
            {
            case .journal(let journal): (journal, (file, ""))
            case .worthless(let why): (nil, (file, why))
            }
        }
    }

    private func journalIdentity() async -> MappingJournal.Identity {
        let file = file
        let birthTime = await engine.blocking { file.birthTime() }
        return MappingJournal.Identity(
            file: file.identity, birthTime: birthTime, size: header.size, clusterBits: header.clusterBits,
            l1Offset: header.l1Offset)
    }

    /// Makes the journal of an image that is about to be written, so that a lack of room is told before.
    func prepareJournal() async throws(BlockError) {
        try await withMetadataLock { () async throws(BlockError) in try await makeJournal() }
    }

    /// Makes an empty journal unless there is one. Under the lock.
    func makeJournal() async throws(BlockError) {
        guard let directory = options.journalDirectory, options.rules.journals, isolated.value.journal == nil
        else { return }
        // Before there is a journal that needs it: a bit without a journal means nothing.
        try await setAutoclear(isolated.value.autoclear | journalBit)
        let identity = await journalIdentity()
        let records = options.journalRecords
        isolated.value.journal = try await engine.blockingResult { () throws(BlockError) -> MappingJournal in
            let bootID = try HostBoot.identifier()
            let file = try MappingJournal.create(
                in: directory, for: identity, bootID: bootID, records: records)
            guard
                case .journal(let journal) = try MappingJournal.examine(
                    file, for: identity, bootID: bootID, isMarked: true)
            else { preconditionFailure("a journal that was just made is one") }
            return journal
        }
    }

    func removeJournal() async throws(BlockError) {
        guard let journal = isolated.value.journal else { return }
        precondition(journal.isEmpty, "a journal is removed when the image has what is in it")
        if isolated.value.allocator.failure == nil {
            try await setAutoclear(isolated.value.autoclear & ~journalBit)
        }
        isolated.value.journal = nil
        try await engine.blockingResult { () throws(BlockError) in try journal.file.remove() }
    }

    // MARK: Replay

    /// Gives the L2 tables what the journal says, and makes it durable; only then are clusters allocated for guests.
    private func replay(_ journal: MappingJournal) async throws(BlockError) {
        isolated.value.journal = journal
        try await prepareForWriting()
        let records = journal.records
        try await withMetadataLock { () async throws(BlockError) in
            for record in records { try await check(record, of: journal) }
            try await restoreReserve(journal)
        }
        if options.rules.settlesReplay { try await file.flush() }
        isolated.value.writeback.isReplaying = true
        do throws(BlockError) {
            try await apply(records)
        } catch {
            isolated.value.writeback.isReplaying = false
            throw error
        }
        isolated.value.writeback.isReplaying = false
        guard options.rules.settlesReplay else { return }
        try await withWriteback { () async throws(BlockError) in try await writeBack() }
    }

    /// Gives each cluster the mapping of its last record, and that only: a table on the disk may be newer than a record,
    /// and to play an older one over it would free what the newer one uses.
    ///
    /// What earlier records of a cluster point to is freed as well. Nothing else uses it: it would not have been
    /// used again before the record that gave it up had left the journal.
    private func apply(_ records: [MappingJournal.Record]) async throws(BlockError) {
        var done = ClusterRuns()
        var (used, givenUp): (Set<UInt64>, Set<UInt64>) = ([], [])
        for record in records.reversed() {
            let clusters = record.firstCluster..<record.firstCluster + record.count
            let parts = done.missing(from: clusters)
            givenUp.formUnion(hosts(of: clusters, in: record))
            for part in parts {
                used.formUnion(hosts(of: part, in: record))
                try await apply(record, to: part)
                done.insert(part)
            }
        }
        for run in isolated.value.allocator.freed { givenUp.subtract(run.clusters) }
        for host in givenUp.subtracting(used).sorted() { free(host..<host + 1) }
    }

    /// The host clusters that a record gives to clusters.
    private func hosts(of clusters: Range<UInt64>, in record: MappingJournal.Record) -> Range<UInt64> {
        let host = (record.entry & Qcow2Entry.offsetMask) / clusterSize
        guard host != 0 else { return 0..<0 }
        let first = host + clusters.lowerBound - record.firstCluster
        return first..<first + UInt64(clusters.count)
    }

    private func apply(_ record: MappingJournal.Record, to clusters: Range<UInt64>) async throws(BlockError) {
        var rest = clusters
        while let first = rest.first {
            let index = first / header.entriesPerL2
            let part = first..<min(rest.upperBound, (index + 1) * header.entriesPerL2)
            let table = try await writableL2Table(index)
            try await map(part, table: table, isLogged: false) { cluster, _ in
                mapping(of: cluster, in: record) ?? .unallocated
            }
            rest = part.upperBound..<rest.upperBound
        }
    }

    /// What a record says about a cluster; nil when that is no mapping.
    private func mapping(of cluster: UInt64, in record: MappingJournal.Record) -> ClusterMapping? {
        let hasHost = record.entry & Qcow2Entry.offsetMask != 0
        let step = hasHost ? (cluster - record.firstCluster) * clusterSize : 0
        // Its fault is told by whoever gets nil.
        return try? Qcow2Entry.l2(record.entry + step, header)
    }

    /// The image counts every cluster that a record points to, unless somebody else has changed it since.
    private func check(
        _ record: MappingJournal.Record, of journal: MappingJournal
    ) async throws(BlockError) {
        let (end, overflows) = record.firstCluster.addingReportingOverflow(record.count)
        guard !overflows, end <= header.clusterCount, record.count > 0,
            let mapping = mapping(of: record.firstCluster, in: record)
        else { throw MappingJournal.unusable(journal.file, "does not fit \(name)") }
        let host: UInt64
        switch mapping {
        case .unallocated, .zero: return
        case .compressed: throw MappingJournal.unusable(journal.file, "does not fit \(name)")
        case .data(let place, _), .zeroAllocated(let place, _): host = place
        }
        for cluster in host / clusterSize..<host / clusterSize + record.count {
            guard cluster < isolated.value.allocator.position, !isOwnTable(cluster),
                try await refcount(of: cluster) > 0
            else {
                throw MappingJournal.unusable(
                    journal.file,
                    "points to places that \(name) does not count: somebody else has changed it since")
            }
        }
    }

    /// Takes over what is left of the reserve. A kill may have come before all of it was counted: the rest is free.
    private func restoreReserve(_ journal: MappingJournal) async throws(BlockError) {
        var runs: [AllocatorState.ReserveRun] = []
        for run in journal.reserve {
            var first = run.clusters.lowerBound
            for cluster in run.clusters {
                guard cluster < isolated.value.allocator.position, try await refcount(of: cluster) == 1,
                    !isOwnTable(cluster)
                else {
                    first = cluster + 1
                    continue
                }
                if first == cluster {
                    runs.append(.init(clusters: cluster..<cluster + 1, isUnused: run.isUnused))
                } else {
                    runs[runs.count - 1].clusters = first..<cluster + 1
                }
            }
        }
        // Counted in pieces, more than fit into a slot: the rest is a leak.
        runs = Array(runs.prefix(MappingJournal.maximumReserveRuns))
        journal.setReserve(runs)
        isolated.value.allocator.setReserve(runs.reversed())
    }
}

// MARK: Damage

extension Qcow2Image {
    /// When `body` finds the image damaged, it is marked as corrupt, and nothing is written to it any more: an entry
    /// that points to a wrong place makes every write dangerous.
    func notingDamage<Result>(
        _ body: () async throws(BlockError) -> Result
    ) async throws(BlockError) -> Result {
        do throws(BlockError) {
            return try await body()
        } catch {
            if error.code == .corrupt, let damage = isolated.value.damage { await markCorrupt(damage) }
            throw error
        }
    }

    private func markCorrupt(_ damage: BlockError) async {
        guard !isNew, isolated.value.allocator.failure == nil else { return }
        // What is good is kept as well as that goes; the error that led here is the one to tell.
        try? await withWriteback { () async throws(BlockError) in
            if isolated.value.allocator.failure == nil { try await writeBack() }
        }
        // As above.
        try? await withMetadataLock { () async throws(BlockError) in
            guard isolated.value.allocator.failure == nil else { return }
            isolated.value.allocator.failure = BlockError(
                .corrupt,
                "Nothing is written to \(name) any more, since it is damaged (\(damage.message)); run "
                    + "qemu-img check -r all on it", range: damage.range)
            guard header.version >= 3 else { return }
            try await changeHeader { bytes in
                let features: UInt64 = bytes.bigEndian(at: 72)
                bytes.storeBigEndian(features | Qcow2Features.Incompatible.corrupt, at: 72)
            }
        }
    }
}

extension IOEngine {
    /// `blocking` for what may fail.
    func blockingResult<Value: Sendable>(
        _ body: @escaping @Sendable () throws(BlockError) -> Value
    ) async throws(BlockError) -> Value {
        let result: Result<Value, BlockError> = await blocking {
            Result { () throws(BlockError) in try body() }
        }
        return try result.get()
    }
}
