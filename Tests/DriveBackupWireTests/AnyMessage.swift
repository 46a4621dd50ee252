internal import DriveBackupWire
internal import TestKit

/// All messages there are: the product's and the tests' own.
let allMessages: [any WireMessage.Type] = WireCatalogue.messages + TestCatalogue.messages

extension WireMessage {
    static func random(_ generator: inout SeededGenerator) -> Self {
        RandomFields.message(Self.self, &generator)
    }
}
