/// What a qcow2 image is open for, and the bounds that follow from it.
struct Qcow2Options: Sendable {
    enum Role: Sendable {
        /// A backup is written to it: it is flushed at the end, and what is not flushed is worth nothing.
        case target
        /// A guest's disk, written in place for months.
        case drive
    }

    var role = Role.target
    /// Where a drive's journal of mappings is; nil: what the guest was told is lost with a killed agent.
    var journalDirectory: String?
    /// How many records a new journal holds.
    var journalRecords = 65536
    /// About how many bytes of host clusters are taken into reserve at once.
    var reserveBytes: UInt64 = 64 << 20
    /// At least so many clusters are.
    var minimumReserve: UInt64 = 16
    /// The bound of the metadata in memory.
    var metadataBytes: UInt64 = 8 << 20
    var rules = Qcow2Rules()

    var isDrive: Bool { role == .drive }
}

/// The rules of crash safety (docs/architecture.md, "Images"), so that a test can leave one out and see that it
/// notices. All of them hold everywhere else.
struct Qcow2Rules: Sendable, Hashable {
    /// Changed mappings are in the journal before the guest is answered.
    var journals = true
    /// A mapping enters the journal after the write of its data has returned.
    var journalsAfterData = true
    /// L2 tables are written only after a flush of the data that they point to.
    var flushesDataFirst = true
    /// A freed host cluster is reused only when all I/O translated to it has ended.
    var waitsForRequests = true
    /// A freed host cluster is reused only when its unmapping is written.
    var waitsForUnmapping = true
    /// A freed host cluster is reused only when that unmapping is flushed as well.
    var flushesUnmapping = true
    /// A replayed journal is written and flushed before any host cluster is allocated.
    var settlesReplay = true
    /// A target's mappings are in its file before a request returns.
    var persistsMappings = true
    /// Refcounts are written before the L2 tables that need them.
    var countsFirst = true
    /// A mapping is changed after the write of its data has returned.
    var mapsAfterData = true
}
