/// What can be done with each field of a message: decode it, encode it, print it.
///
/// A message shows its fields in the order of the schema. The number and the name are the field's in the schema.
public protocol FieldCoder {
    mutating func bool(_ number: UInt32, _ name: StaticString, _ value: inout Bool)
    mutating func int32(_ number: UInt32, _ name: StaticString, _ value: inout Int32)
    mutating func int64(_ number: UInt32, _ name: StaticString, _ value: inout Int64)
    mutating func uint32(_ number: UInt32, _ name: StaticString, _ value: inout UInt32)
    mutating func uint64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64)
    /// As `uint64`, with eight bytes on the wire.
    mutating func fixed64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64)
    mutating func string(_ number: UInt32, _ name: StaticString, _ value: inout String)
    mutating func bytes(_ number: UInt32, _ name: StaticString, _ value: inout [UInt8])
    mutating func enumeration<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ value: inout E)
    mutating func message<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?)
    /// The number of the field that is to be coded of a oneof whose first field is `first`: 0 for none, nil for all. In the
    /// Swift value it is `current`.
    mutating func oneof(_ first: UInt32, is current: UInt32) -> UInt32?
    /// One of the messages of a oneof: not nil for one of them at most.
    mutating func oneofMessage<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?)

    mutating func strings(_ number: UInt32, _ name: StaticString, _ values: inout [String])
    mutating func enumerations<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ values: inout [E])
    mutating func messages<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ values: inout [M])
}
