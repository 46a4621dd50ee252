internal import CBlockIO
internal import Glibc
internal import Synchronization

/// A process that this one has started, with a socket to it.
///
/// It inherits nothing but its end of the socket, shared memory, standard error and the environment. A process that waits
/// in a system call which cannot be interrupted stays, killed or not, until that returns; `end` says when it is gone.
package final class ChildProcess: Sendable {
    /// How a process ended.
    package struct Ending: Sendable, Hashable, CustomStringConvertible {
        /// The exit status; 0 when a signal killed it.
        package var status: Int32
        /// The signal that killed it, or 0.
        package var signal: Int32

        package var description: String {
            switch signal {
            case 0: "ended with status \(status)"
            case SIGKILL: "was killed by signal \(signal), as by the kernel when memory is short"
            default: "was killed by signal \(signal)"
            }
        }
    }

    /// The numbers of what it inherits.
    package static let socketNumber: Int32 = 3
    package static let memoryNumber: Int32 = 4

    package let processID: Int32
    /// This side's end of the socket.
    package let socket: PairedSocket
    /// A pidfd, which is -1 once the process is gone.
    private let descriptor: Mutex<Int32>

    /// Waits for processes; never ended, since one that hangs may outlive everything else.
    private static let poller = SocketPoller(name: "children")

    /// Starts `executable` with `arguments`, the first of which is its name. Blocks for a moment.
    package init(
        executable: String, arguments: [String], memory: SharedMemory
    ) throws(BlockError) {
        var sockets: (Int32, Int32) = (-1, -1)
        let paired = withUnsafeMutableBytes(of: &sockets) { bytes in
            cblockio_socket_pair(bytes.baseAddress?.assumingMemoryBound(to: Int32.self))
        }
        guard paired == 0 else { throw BlockError("Couldn't make a pair of sockets", errno: -paired) }
        socket = PairedSocket(adopting: sockets.0)
        defer { _ = cblockio_close(sockets.1) }
        let words = arguments.map { strdup($0) }
        defer { for word in words { free(word) } }
        var process: pid_t = 0
        let result = (words + [nil]).withUnsafeBufferPointer { words in
            cblockio_spawn(executable, words.baseAddress, sockets.1, memory.descriptor, &process)
        }
        guard result >= 0 else { throw BlockError("Couldn't start \(executable)", errno: -result) }
        processID = process
        descriptor = Mutex(result)
    }

    deinit { descriptor.withLock { if $0 >= 0 { _ = cblockio_close($0) } } }

    /// Kills it, now or when the system call that it hangs in returns.
    package func kill() {
        descriptor.withLock { descriptor in
            guard descriptor >= 0 else { return }
            // It can only say that the process has ended.
            _ = cblockio_signal_process(descriptor, SIGKILL)
        }
    }

    /// Waits until the process is gone, with all that it had open and locked. To be called once.
    package func end() async -> Ending {
        let watched = descriptor.withLock { $0 }
        _ = await withUnsafeContinuation { waiter in Self.poller.wait(for: watched, .reading, waiter) }
        var (status, signal): (Int32, Int32) = (0, 0)
        // Somebody else's wait for it leaves no word about how it ended.
        _ = cblockio_reap(processID, &status, &signal)
        descriptor.withLock { descriptor in
            _ = cblockio_close(descriptor)
            descriptor = -1
        }
        return Ending(status: status, signal: signal)
    }
}

/// One end of a pair of connected stream sockets.
package final class PairedSocket: Sendable {
    private let descriptor: Int32

    /// Takes a descriptor over.
    package init(adopting descriptor: Int32) { self.descriptor = descriptor }

    deinit { _ = cblockio_close(descriptor) }

    /// Makes an engine that keeps this end open until all its requests have ended, also those that outlive the process: until
    /// then the other side reads no end. Throws what `RingEngine` does.
    package func makeRing(name: String) throws(BlockError) -> RingEngine {
        try RingEngine(name: name, holding: descriptor)
    }

    /// Sends what the socket takes at once: a count, which may be 0; nil when nobody can receive any more.
    package func sendNow(_ bytes: ArraySlice<UInt8>) -> Int? {
        let count = Int(bytes.withUnsafeBytes { cblockio_send_now(descriptor, $0.baseAddress, $0.count) })
        if count == Int(-EAGAIN) { return 0 }
        return count < 0 ? nil : count
    }

    /// Sends through an engine, waiting for room: a count of at least 1; nil when nobody can receive any more.
    package func send(_ bytes: ArraySlice<UInt8>, on engine: any IOEngine) async -> Int? {
        let buffer = IOBuffer(count: bytes.count)
        bytes.withUnsafeBytes { buffer.bytes.copyMemory(from: $0) }
        let part = UnsafeMutableBufferPointer<iovec>.allocate(capacity: 1)
        defer { part.deallocate() }
        part.initialize(repeating: iovec(iov_base: buffer.bytes.baseAddress, iov_len: bytes.count))
        let count = await engine.send(descriptor, part)
        return count > 0 ? count : nil
    }

    /// Receives what has arrived into `buffer`, waiting for it; 0 at the end. On the engine.
    package func receive(into buffer: IOBuffer, on engine: any IOEngine) async -> Int {
        max(0, await engine.receive(descriptor, buffer.bytes, all: false))
    }

    /// Sends all of it. Blocks; false when nobody can receive any more.
    package func sendBlocking(_ bytes: [UInt8]) -> Bool {
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = Int(
                rest.withUnsafeBytes { cblockio_send_waiting(descriptor, $0.baseAddress, $0.count) })
            guard count > 0 else { return false }
            rest = rest.dropFirst(count)
        }
        return true
    }

    /// Receives what has arrived, waiting for it; 0 at the end. Blocks.
    package func receiveBlocking(into buffer: IOBuffer) -> Int {
        max(0, Int(cblockio_receive_waiting(descriptor, buffer.bytes.baseAddress, buffer.count)))
    }

    /// The other side reads an end after what was sent.
    package func endSending() { _ = cblockio_shutdown_sending(descriptor) }

    /// Ends both directions; whoever receives here reads an end.
    package func shutDown() { _ = cblockio_shutdown(descriptor) }
}

/// What a process that was started as a child does to itself first.
package enum OwnProcess {
    /// Names it in lists of processes (15 bytes are kept), and leaves its end to whoever started it.
    package static func becomeChild(named name: String) {
        cblockio_name_thread(name)
        cblockio_ignore_signals()
    }

    /// Lets others go first where there are not enough processors for all: 0 to 19, as nice(1). For the calling thread and those
    /// that it starts.
    package static func yieldToOthers(niceness: Int32) {
        // A matter of pace: who may not does without.
        _ = setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, niceness)
    }

    /// Ends it at once; what it had open is closed, what was locked is free.
    package static func end(status: Int32) -> Never { _exit(status) }
}

/// An answer that a thread which may block waits for.
package final class Answer<Value: Sendable>: Sendable {
    private let value = Mutex<Value?>(nil)
    private let isThere = Semaphore()

    package init() {}

    /// Gives the answer, once.
    package func give(_ value: Value) {
        self.value.withLock { $0 = value }
        isThere.signal()
    }

    /// Waits for it, once. Blocks: never on Swift's pool.
    package func take() -> Value {
        isThere.wait()
        guard let value = value.withLock({ $0 }) else { preconditionFailure("an answer is taken once") }
        return value
    }
}
