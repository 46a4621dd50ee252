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
///
/// Each thread keeps the memory of the last one, so that most messages take nothing from `malloc`.
struct WireArena: ~Copyable {
    /// In memory that does not move, since libprotobuf-c's callbacks get its address.
    private let state: UnsafeMutablePointer<State>

    /// What an arena for our own messages may take: in effect, no limit.
    static let unlimited = 1 << 40

    /// Where a thread keeps a `State` that no arena uses.
    private static let idle: pthread_key_t = {
        var key = pthread_key_t()
        let error = pthread_key_create(&key) { kept in
            // SAFETY: what is kept there is a `State` that was made by `init` and belongs to nobody.
            kept.map { WireArena.destroy($0.assumingMemoryBound(to: State.self)) }
        }
        precondition(error == 0, "pthread_key_create: error \(error)")
        return key
    }()

    /// An arena that gives out at most `capacity` bytes, headers and rounding included.
    init(capacity: Int) {
        precondition(capacity <= Self.unlimited, "an arena of \(capacity) bytes")
        if let kept = pthread_getspecific(Self.idle) {
            pthread_setspecific(Self.idle, nil)
            state = kept.assumingMemoryBound(to: State.self)
        } else {
            state = .allocate(capacity: 1)
            state.initialize(
                to: State(
                    ProtobufCAllocator(
                        alloc: { data, size in
                            data?.assumingMemoryBound(to: State.self).pointee.allocate(size)
                        },
                        free: { data, block in
                            data?.assumingMemoryBound(to: State.self).pointee.recycle(block)
                        },
                        allocator_data: UnsafeMutableRawPointer(state))))
        }
        state.pointee.remaining = capacity
    }

    deinit {
        state.pointee.clear()
        if pthread_getspecific(Self.idle) == nil, pthread_setspecific(Self.idle, state) == 0 { return }
        Self.destroy(state)
    }

    private static func destroy(_ state: UnsafeMutablePointer<State>) {
        state.pointee.freeChunks()
        state.deinitialize(count: 1)
        state.deallocate()
    }

    /// `size` zeroed bytes, aligned for everything; nil when the arena is full. They live as long as the arena.
    func allocate(_ size: Int) -> UnsafeMutableRawPointer? { state.pointee.allocate(size) }

    /// For libprotobuf-c, while the arena lives.
    var cAllocator: UnsafeMutablePointer<ProtobufCAllocator> {
        // SAFETY: the allocator is the first member of the struct, and the library does not change it.
        UnsafeMutableRawPointer(state).assumingMemoryBound(to: ProtobufCAllocator.self)
    }
}

extension WireArena {
    fileprivate struct State {
        /// Before each block: its size. It keeps the block aligned to 16.
        private static let headerSize = 16
        /// libprotobuf-c frees the tables of its scanner when a message is done: those are worth using again.
        private static let smallestReused = 512
        private static let mostReused = 64

        /// Kept chunks are of this size, which is enough for most messages.
        private static let firstChunkSize = 4096

        /// First, since its address is the struct's.
        private let allocator: ProtobufCAllocator
        /// What may still be given out.
        var remaining = 0
        private var chunks: [UnsafeMutableRawPointer] = []
        private var reusable: [UnsafeMutableRawPointer] = []
        /// What is left of the newest chunk.
        private var rest = UnsafeMutableRawBufferPointer(start: nil, count: 0)
        private var nextChunkSize = firstChunkSize
        private var hasKeptSize = false

        init(_ allocator: ProtobufCAllocator) { self.allocator = allocator }

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

        /// Forgets all blocks. One chunk of the usual size stays, zeroed.
        mutating func clear() {
            reusable.removeAll(keepingCapacity: true)
            guard chunks.count == 1, hasKeptSize else {
                freeChunks()
                return
            }
            let chunk = chunks[0]
            memset(chunk, 0, Self.firstChunkSize - rest.count)
            rest = UnsafeMutableRawBufferPointer(start: chunk, count: Self.firstChunkSize)
        }

        mutating func freeChunks() {
            // SAFETY: each came from calloc and is in the list once.
            for chunk in chunks { free(chunk) }
            chunks.removeAll(keepingCapacity: true)
            rest = UnsafeMutableRawBufferPointer(start: nil, count: 0)
            nextChunkSize = Self.firstChunkSize
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
            hasKeptSize = chunks.isEmpty && chunkSize == Self.firstChunkSize
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
