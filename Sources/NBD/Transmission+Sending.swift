internal import BlockIO

/// How replies leave: in the step that has made them, or by the sender.
extension Transmission {
    /// The reply to a read that is whole.
    func dataReply(_ request: RequestHeader, _ slice: IOSlice, _ buffer: IOBuffer) -> Reply {
        let form: Reply.Form =
            agreement.hasStructuredReplies ? .data(offset: request.offset, slice) : .simpleData(slice)
        return Reply(cookie: request.cookie, form: form, buffer: buffer)
    }

    /// Leaves a reply for the sender.
    func leave(_ reply: Reply) {
        state.value.outgoing.append(reply)
        state.value.waitingForReplies.take()?.resume()
    }

    /// Leaves a reply to a request that was not in flight before; `sendAtOnce` follows in the same step.
    func leaveNew(_ reply: Reply) {
        state.withState { state in
            state.inFlight += 1
            state.outgoing.append(reply)
        }
    }

    /// Sends what was left in this step, as far as the socket has room and the sender is not at it; the rest is the sender's.
    func sendAtOnce() {
        while !state.value.outgoing.isEmpty, state.value.waitingForReplies != nil {
            // Nobody leaves a turn without waking the sender: all of these are to be sent.
            let count = state.value.isBroken ? 0 : sender.gather(state.value.outgoing[...], from: device)
            guard count > 0 || state.value.isBroken else {
                readAfterAll(state.value.outgoing.removeFirst())
                continue
            }
            // After long data others have their turn.
            let isLong = count > 0 && state.value.outgoing[count - 1].range != nil
            guard count > 0, sender.sendAtOnce() else {
                state.value.gathered = count
                state.value.waitingForReplies.take()?.resume()
                return
            }
            finish(state.value.outgoing.prefix(count))
            state.value.outgoing.removeFirst(count)
            if isLong, !state.value.outgoing.isEmpty { state.value.waitingForReplies.take()?.resume() }
        }
    }

    /// Leaves a reply and waits until it has left, or never will; false then.
    func leaveAndWait(_ reply: Reply) async -> Bool {
        await withUnsafeContinuation { continuation in
            var reply = reply
            reply.waiter = continuation
            leave(reply)
        }
        return !state.value.isBroken
    }

    func sendReplies() async {
        var batch: [Reply] = []
        while true {
            while state.value.outgoing.isEmpty {
                if state.value.hasReceivedAll && state.value.inFlight == 0 { return }
                await withUnsafeContinuation { state.value.waitingForReplies = $0 }
            }
            swap(&batch, &state.value.outgoing)
            var gathered = 0
            swap(&gathered, &state.value.gathered)
            var rest = batch[...]
            while let first = rest.first {
                if case .turn = first.form {
                    await withUnsafeContinuation { back in
                        state.value.waitingForTurn = back
                        first.waiter?.resume()
                    }
                    rest.removeFirst()
                    continue
                }
                let upToTurn = rest.prefix { if case .turn = $0.form { false } else { true } }
                var count = upToTurn.count
                if !state.value.isBroken {
                    count = gathered > 0 ? gathered : sender.gather(upToTurn, from: device)
                    gathered = 0
                    guard count > 0 else {
                        readAfterAll(rest.removeFirst())
                        continue
                    }
                    progress.outgoing.begin(sender.bytesToSend)
                    if !(await sender.send()) { breakOff() }
                    progress.outgoing.end()
                }
                let isLong = rest[rest.startIndex + count - 1].range != nil
                finish(rest.prefix(count))
                rest.removeFirst(count)
                // It may not have waited for anything.
                if isLong { await Task.yield() }
            }
            batch.removeAll(keepingCapacity: true)
        }
    }

    /// The client cannot be reached any more.
    func breakOff() {
        state.value.isBroken = true
        cutOff()
    }

    /// Replies have left, or were dropped.
    func finish(_ replies: ArraySlice<Reply>) {
        var ended = 0
        for index in replies.indices {
            if let buffer = replies[index].buffer { memory.give(buffer, from: account) }
            replies[index].waiter?.resume()
            if replies[index].isLast { ended += 1 }
        }
        guard ended > 0 else { return }
        let (receiver, sender, isOver) = state.withState { state in
            state.inFlight -= ended
            let isIdle = state.inFlight == 0
            return (
                state.waitingForSlot.take(),
                // There is nothing more to wait for.
                isIdle && state.hasReceivedAll ? state.waitingForReplies.take() : nil,
                isIdle && state.isEnding
            )
        }
        receiver?.resume()
        sender?.resume()
        if isOver { cutOff() }
    }

    /// Whoever waited for its turn to send has sent its reply, or cannot any more.
    func endOwnTurn(_ buffer: IOBuffer) {
        finish([Reply(cookie: 0, form: .none, buffer: buffer)])
        state.value.waitingForTurn.take()?.resume()
    }
}
