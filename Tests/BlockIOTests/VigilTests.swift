internal import Testing

@testable internal import BlockIO

@Suite("How long a ring's thread looks before it sleeps")
struct VigilTests {
    @Test("it looks where the last wait was short, and only there")
    func shortWaits() {
        var vigil = Vigil()
        #expect(vigil.length() == 0)
        vigil.ended(after: Vigil.short, sawIt: nil)
        #expect(vigil.length() == 0)
        vigil.ended(after: Vigil.short - 1, sawIt: nil)
        #expect(vigil.length() == Vigil.longest)
        vigil.ended(after: 1_000_000, sawIt: true)
        #expect(vigil.length() == 0)
    }

    @Test("each time in vain doubles for how many waits it is left out, and one success ends that")
    func vain() {
        var vigil = Vigil()
        /// How many short waits pass before the next look.
        func leftOut() -> Int {
            var count = 0
            vigil.ended(after: 1, sawIt: nil)
            while vigil.length() == 0, count < 5000 {
                count += 1
                vigil.ended(after: 1, sawIt: nil)
            }
            return count
        }
        #expect(leftOut() == 0)
        for round in 1...12 {
            vigil.ended(after: Vigil.longest, sawIt: false)
            #expect(leftOut() == 1 << min(round, 10))
        }
        vigil.ended(after: 1, sawIt: true)
        #expect(leftOut() == 0)
        vigil.ended(after: Vigil.longest, sawIt: false)
        #expect(leftOut() == 2)
    }
}
