internal import CProtobufC

#if canImport(Glibc)
internal import Glibc
#elseif canImport(Musl)
internal import Musl
#endif

/// The memory of one decoding or encoding: taken in chunks, handed out piece by piece, zeroed, freed together.
///
/// libprotobuf-c gets it as its allocator. That makes decoding cheap (one `calloc` for most messages), bounds it
/// (`capacity`), and takes the weight off the library's own freeing, whose failure paths have had bugs. Zeroed memory
/// also hides that versions before 1.5 leave parts of a oneof unset.
struct WireArena: ~Copyable {
    /// In memory that does not move, since libprotobuf-c's callbacks get its address.
    private let state: UnsafeMutablePointer<State>
    private let allocator: UnsafeMutablePointer<ProtobufCAllocator>

    /// What an arena for our own messages may take: in effect, no limit.
    static let unlimited = 1 << 40

    /// An arena that gives out at most `capacity` bytes, headers and rounding included.
    init(capacity: Int) {
        precondition(capacity <= Self.unlimited, "an arena of \(capacity) bytes")
        state = .allocate(capacity: 1)
        state.initialize(to: State(remaining: capacity))
        allocator = .allocate(capacity: 1)
        allocator.initialize(
            to: ProtobufCAllocator(
                alloc: { data, size in data?.assumingMemoryBound(to: State.self).pointee.allocate(size) },
                free: { data, block in data?.assumingMemoryBound(to: State.self).pointee.recycle(block) },
                allocator_data: UnsafeMutableRawPointer(state)))
    }

    deinit {
        state.pointee.freeChunks()
        state.deinitialize(count: 1)
        state.deallocate()
        allocator.deinitialize(count: 1)
        allocator.deallocate()
    }

    /// `size` zeroed bytes, aligned for everything; nil when the arena is full. They live as long as the arena.
    func allocate(_ size: Int) -> UnsafeMutableRawPointer? { state.pointee.allocate(size) }

    /// For libprotobuf-c, while the arena lives.
    var cAllocator: UnsafeMutablePointer<ProtobufCAllocator> { allocator }
}

extension WireArena {
    fileprivate struct State {
        /// Before each block: its size. It keeps the block aligned to 16.
        private static let headerSize = 16
        /// libprotobuf-c frees the tables of its scanner when a message is done: those are worth using again.
        private static let smallestReused = 512
        private static let mostReused = 64

        private var chunks: [UnsafeMutableRawPointer] = []
        private var reusable: [UnsafeMutableRawPointer] = []
        /// What is left of the newest chunk.
        private var rest = UnsafeMutableRawBufferPointer(start: nil, count: 0)
        private var remaining: Int
        private var nextChunkSize = 4096

        init(remaining: Int) { self.remaining = remaining }

        mutating func allocate(_ size: Int) -> UnsafeMutableRawPointer? {
            if size >= Self.smallestReused, let block = reuse(size) { return block }
            guard size >= 0, size <= remaining else { return nil }
            // Cannot overflow: `remaining` is far below Int.max.
            let total = (size + 15) / 16 * 16 + Self.headerSize
            guard total <= remaining else { return nil }
            if rest.count < total, !addChunk(atLeast: total) { return nil }
            guard let start = rest.baseAddress else { return nil }
            rest = UnsafeMutableRawBufferPointer(rebasing: rest.dropFirst(total))
            remaining -= total
            start.storeBytes(of: size, as: Int.self)
            return start + Self.headerSize
        }

        mutating func recycle(_ block: UnsafeMutableRawPointer?) {
            guard let block, Self.size(of: block) >= Self.smallestReused, reusable.count < Self.mostReused
            else {
                return
            }
            reusable.append(block)
        }

        mutating func freeChunks() {
            // SAFETY: each came from calloc and is in the list once.
            for chunk in chunks { free(chunk) }
            chunks = []
        }

        private mutating func reuse(_ size: Int) -> UnsafeMutableRawPointer? {
            guard let index = reusable.lastIndex(where: { Self.size(of: $0) == size }) else { return nil }
            let block = reusable.remove(at: index)
            memset(block, 0, size)
            return block
        }

        private mutating func addChunk(atLeast size: Int) -> Bool {
            let chunkSize = max(size, nextChunkSize)
            nextChunkSize = min(nextChunkSize * 4, 1 << 20)
            guard let chunk = calloc(1, chunkSize) else { return false }
            chunks.append(chunk)
            rest = UnsafeMutableRawBufferPointer(start: chunk, count: chunkSize)
            return true
        }

        private static func size(of block: UnsafeMutableRawPointer) -> Int {
            // SAFETY: every block was made by `allocate`, which wrote its size there.
            (block - headerSize).load(as: Int.self)
        }
    }
}
