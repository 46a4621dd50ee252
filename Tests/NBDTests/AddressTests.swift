internal import NBD
internal import Testing

@Suite struct AddressTests {
    @Test("addresses are told apart by all their parts")
    func equality() {
        #expect(NBDAddress.tcp(host: "localhost", port: 1) != .tcp(host: "localhost", port: 2))
    }
}
