package import BlockIO

/// A qcow2 image as a device: reading through the chain, and writing (see the extensions).
///
/// **Who owns what.** All metadata (L1 and L2 tables, refcounts) is read and changed through `MetadataPages`, in steps
/// without an `await` in between, on the image's engine; data I/O happens outside of them, many requests at once.
/// Three rules keep that right:
/// 1. Who changes the mapping of guest clusters first registers them in `changes`; who finds them registered waits
///    and looks again. So no guest cluster is ever allocated twice, and its old content is copied by one task only.
/// 2. Refcounts, the allocator and new tables are changed under `metadataLock` only.
/// 3. A host cluster that was freed waits in `freed` for the flush that makes its unmapping durable, and in `unmapped`
///    for the requests that may still use it; then its refcount is lowered, and in a drive it can be used again.
///
/// **Kills and power losses.** A drive's changed mappings are in its journal before the guest is answered
/// (`MappingJournal`), and in its L2 tables with a flush (`Qcow2Image+Writeback`).
package final class Qcow2Image: BlockDevice {
    /// The disk below.
    enum Backing: Sendable {
        case none
        case open(any BlockDevice)
        /// Recorded in the image by this name, but not open.
        case notOpen(String)

        var isNone: Bool { if case .none = self { true } else { false } }
    }

    struct State {
        var pages: MetadataPages
        var metadataLock = EngineLock()
        var requests = RequestTickets()
        var changes = ClusterChanges()
        /// Of compressed clusters being read, each of which takes up to three clusters of memory.
        var decompressions = EngineSlots(8)
        var allocator = AllocatorState()
        var writeback = WritebackState()
        /// A drive's, from its first change on.
        var journal: MappingJournal?
        /// The first thing that was found wrong with the image.
        var damage: BlockError?
        var refcountTable: ByteRange
        var autoclear: UInt64
    }

    let file: HostFile
    let header: Qcow2Header
    let backing: Backing
    package let isReadOnly: Bool
    /// The disk's bytes that its maker asked for; what follows up to `size` is zero and never written.
    let contentSize: UInt64
    /// We made the file: until its first flush there is nothing in it that a crash could damage.
    let isNew: Bool
    let options: Qcow2Options
    let isolated: EngineIsolated<State>

    /// Takes over `file` and `backing`, which `close` closes.
    init(
        _ file: HostFile, header: Qcow2Header, backing: Backing, isReadOnly: Bool, contentSize: UInt64? = nil,
        isNew: Bool = false, options: Qcow2Options = Qcow2Options()
    ) {
        self.file = file
        self.header = header
        self.backing = backing
        self.isReadOnly = isReadOnly
        self.contentSize = contentSize ?? header.size
        self.isNew = isNew
        self.options = options
        isolated = EngineIsolated(
            State(
                pages: MetadataPages(clusterSize: header.clusterSize, bytes: options.metadataBytes),
                refcountTable: header.refcountTableRange,
                autoclear: header.autoclear),
            engine: file.engine)
    }

    package var name: String { file.name }
    package var engine: any IOEngine { file.engine }
    /// The header's size, to the byte: a size that is no multiple of 512 (which QEMU would cut off) hides nothing.
    package var size: UInt64 { header.size }
    package var clusterSize: UInt64 { header.clusterSize }
    package var limits: BlockLimits { BlockLimits(optimalGranularity: header.clusterSize) }

    /// Closes the file and the backing file; no request is in flight. A drive that was written is flushed first, its
    /// unused clusters are given back and its journal removed; where that fails, the journal stays, the files are
    /// closed all the same, and the failure is thrown. A target is closed as it is: its owner has flushed it, or gives
    /// it up.
    package func close() async throws(BlockError) {
        var failure: BlockError?
        do throws(BlockError) { try await settleDrive() } catch { failure = error }
        do throws(BlockError) { try await file.close() } catch { failure = failure ?? error }
        if case .open(let device) = backing {
            do throws(BlockError) { try await device.close() } catch { failure = failure ?? error }
        }
        if let failure { throw failure }
    }

    /// The error that says what is wrong with the image; it is remembered, so that nothing is written after it.
    func corrupt(_ what: String, range: ByteRange? = nil) -> BlockError {
        let error = BlockError(
            .corrupt, "Image \(name) is damaged: \(what); run qemu-img check on it", range: range)
        if isolated.value.damage == nil { isolated.value.damage = error }
        return error
    }
}
