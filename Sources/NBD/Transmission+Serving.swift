internal import BlockIO

/// What is done for one request, in a task of its own.
extension Transmission {
    /// How often the device is asked for one answer to BLOCK_STATUS, which may be short (NBD proto.md, "Request types").
    private static let maximumQuestions = 4

    /// Does what was asked for and leaves the replies. `buffer` has the payload of a write, and is where a read goes.
    func serve(_ request: RequestHeader, _ command: NBDCommand, _ buffer: IOBuffer?) async {
        do throws(BlockError) {
            // Those of a flush mean nothing, and may be none of a range.
            let range =
                command == .flush
                ? ByteRange(offset: 0, length: 0)
                : ByteRange(offset: request.offset, length: UInt64(request.length))
            switch command {
            case .read: return try await read(request, range, buffer)
            case .write:
                if let buffer {
                    defer { memory.give(buffer, from: account) }
                    try await device.write(range, from: buffer[0..<Int(request.length)])
                }
            case .writeZeroes:
                let mayUnmap = !request.flags.contains(.noHole)
                if request.flags.contains(.fastZero), !device.zeroesQuickly(mayUnmap: mayUnmap) {
                    return refuse(request, .notSupported, "Zeroes would take as long as data")
                }
                if !range.isEmpty { try await device.writeZeroes(range, mayUnmap: mayUnmap) }
            case .trim: if !range.isEmpty { try await device.discard(range) }
            case .flush: try await device.flush()
            case .blockStatus: return try await describe(request, range)
            case .disconnect: break
            }
            let changes = command == .write || command == .writeZeroes || command == .trim
            if changes && request.flags.contains(.fua) { try await device.flush() }
            leave(Reply(cookie: request.cookie, form: .simple(nil)))
        } catch {
            fail(request, error)
        }
    }

    /// Answers a request with an error.
    func refuse(
        _ request: RequestHeader, _ error: NBDError, _ message: String, giving buffer: IOBuffer? = nil
    ) {
        let form: Reply.Form = agreement.hasStructuredReplies ? .error(error, message) : .simple(error)
        leave(Reply(cookie: request.cookie, form: form, buffer: buffer))
    }

    /// Answers a request that the device has failed.
    func fail(_ request: RequestHeader, _ error: BlockError, giving buffer: IOBuffer? = nil) {
        // Paths of this host are nothing for a client.
        report(error.message)
        let (code, words): (NBDError, String) =
            error.isNoSpace
            ? (.noSpace, "No space is left for the device") : (.inputOutput, "The device failed the request")
        refuse(request, code, words, giving: buffer)
    }

    // MARK: Reading

    private func read(_ request: RequestHeader, _ range: ByteRange, _ buffer: IOBuffer?)
        async throws(BlockError)
    {
        guard let buffer else {
            let form: Reply.Form = agreement.hasStructuredReplies ? .none : .simpleData(nil)
            return leave(Reply(cookie: request.cookie, form: form))
        }
        let piece = range.prefix(UInt64(RequestMemory.maximumPiece))
        let slice = buffer[0..<Int(piece.length)]
        do throws(BlockError) {
            try await device.read(piece, into: slice)
        } catch {
            return fail(request, error, giving: buffer)
        }
        guard piece.length < range.length else { return leave(dataReply(request, slice, buffer)) }
        if agreement.hasStructuredReplies {
            await readFragments(request, range, buffer)
        } else {
            await readInOnePiece(request, range, buffer)
        }
    }

    /// Answers a long read with the pages of the cache, or leaves a reply that will; false when they have to be read.
    func replyWithPages(_ request: RequestHeader) -> Bool {
        let range = ByteRange(offset: request.offset, length: UInt64(request.length))
        guard device.fillsPipes, sender.holds(range) else { return false }
        let reply = Reply(
            cookie: request.cookie, form: .pages(range, isStructured: agreement.hasStructuredReplies))
        sendAtOnce()
        if state.value.outgoing.isEmpty, state.value.waitingForReplies != nil, !state.value.isBroken {
            // Its turn is now.
            guard sender.fill(with: range, from: device) else { return false }
            leaveNew(reply)
            sendAtOnce()
        } else {
            guard device.hasCached(range) else { return false }
            leaveNew(reply)
        }
        return true
    }

    /// Reads what the page cache had, but has not any more when it is the reply's turn.
    func readAfterAll(_ reply: Reply) {
        guard let range = reply.range else { preconditionFailure("only pages are not to be had") }
        let request = RequestHeader(
            type: NBDCommand.read.rawValue, cookie: reply.cookie, offset: range.offset,
            length: UInt32(range.length))
        // It outlives nothing: `run` waits for the reply.
        Task(executorPreference: engine) {
            guard let buffer = await self.memory.take(Int(range.length), for: self.account) else {
                return self.refuse(request, .shutdown, "The connection is being closed")
            }
            await self.serve(request, .read, buffer)
        }
    }

    /// Goes on with a read whose first piece is in `buffer`, a chunk for each piece.
    private func readFragments(_ request: RequestHeader, _ range: ByteRange, _ buffer: IOBuffer) async {
        var rest = range
        while true {
            let piece = rest.prefix(UInt64(RequestMemory.maximumPiece))
            rest = rest.dropFirst(piece.length)
            let isLast = rest.isEmpty
            let reply = Reply(
                cookie: request.cookie, form: .data(offset: piece.offset, buffer[0..<Int(piece.length)]),
                isLast: isLast, buffer: isLast ? buffer : nil)
            guard !isLast else { return leave(reply) }
            guard await leaveAndWait(reply) else {
                return leave(Reply(cookie: request.cookie, form: .none, buffer: buffer))
            }
            let next = rest.prefix(UInt64(RequestMemory.maximumPiece))
            do throws(BlockError) {
                try await device.read(next, into: buffer[0..<Int(next.length)])
            } catch {
                return fail(request, error, giving: buffer)
            }
        }
    }

    /// Goes on with a read whose first piece is in `buffer` and whose reply has no parts: nothing else is sent before its
    /// last byte, and an error in its middle can only be told by hanging up.
    private func readInOnePiece(_ request: RequestHeader, _ range: ByteRange, _ buffer: IOBuffer) async {
        _ = await leaveAndWait(Reply(cookie: request.cookie, form: .turn, isLast: false))
        var rest = range
        var isFirst = true
        while !rest.isEmpty, !state.value.isBroken {
            let piece = rest.prefix(UInt64(RequestMemory.maximumPiece))
            let slice = buffer[0..<Int(piece.length)]
            if !isFirst {
                do throws(BlockError) {
                    try await device.read(piece, into: slice)
                } catch {
                    report(error.message)
                    breakOff()
                    break
                }
            }
            // Only then is it the client that is waited for, and not the device.
            progress.outgoing.begin(slice.count)
            let isSent: Bool
            if isFirst {
                _ = sender.gather(
                    [Reply(cookie: request.cookie, form: .simpleData(slice))], from: device)
                isSent = await sender.send()
            } else {
                isSent = await sender.send(slice)
            }
            progress.outgoing.end()
            if !isSent { breakOff() }
            isFirst = false
            rest = rest.dropFirst(piece.length)
        }
        endOwnTurn(buffer)
    }

    // MARK: Block status

    private func describe(_ request: RequestHeader, _ range: ByteRange) async throws(BlockError) {
        var extents: [(length: UInt32, flags: AllocationFlags)] = []
        var rest = range
        let isOne = request.flags.contains(.reqOne)
        // A device may describe little at a time; whoever wants more asks again.
        var questions = 0
        search: while !rest.isEmpty, questions < Self.maximumQuestions {
            // An answer may take a while without ever waiting: all else on the engine has its turn in between.
            if questions > 0 { await Task.yield() }
            questions += 1
            for extent in try await device.extents(in: rest) {
                let flags: AllocationFlags = extent.isZero ? [.hole, .zero] : []
                let length = UInt32(extent.range.length)
                if let last = extents.last, last.flags == flags {
                    extents[extents.count - 1].length = last.length + length
                } else if extents.count == (isOne ? 1 : Reply.maximumExtents) {
                    break search
                } else {
                    extents.append((length, flags))
                }
                rest = rest.dropFirst(extent.range.length)
            }
        }
        leave(Reply(cookie: request.cookie, form: .status(extents)))
    }
}
