internal import CProtobufC
internal import DriveBackupWire
internal import Foundation
internal import Testing

/// The fields of a message as its Swift side lists them.
struct FieldList: FieldCoder {
    struct Field: Hashable {
        var number: UInt32
        var name: String
        var type: UInt32
        var isRepeated = false
        var isInOneof = false
        /// The full name of the message or the C name of the enum.
        var typeName = ""
    }

    private(set) var fields: Set<Field> = []
    private(set) var count = 0
    private(set) var messages: [any WireMessage.Type] = []

    mutating func bool(_ number: UInt32, _ name: StaticString, _ value: inout Bool) {
        add(number, name, PROTOBUF_C_TYPE_BOOL)
    }
    mutating func int32(_ number: UInt32, _ name: StaticString, _ value: inout Int32) {
        add(number, name, PROTOBUF_C_TYPE_INT32)
    }
    mutating func int64(_ number: UInt32, _ name: StaticString, _ value: inout Int64) {
        add(number, name, PROTOBUF_C_TYPE_INT64)
    }
    mutating func uint32(_ number: UInt32, _ name: StaticString, _ value: inout UInt32) {
        add(number, name, PROTOBUF_C_TYPE_UINT32)
    }
    mutating func uint64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) {
        add(number, name, PROTOBUF_C_TYPE_UINT64)
    }
    mutating func fixed64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) {
        add(number, name, PROTOBUF_C_TYPE_FIXED64)
    }
    mutating func string(_ number: UInt32, _ name: StaticString, _ value: inout String) {
        add(number, name, PROTOBUF_C_TYPE_STRING)
    }
    mutating func bytes(_ number: UInt32, _ name: StaticString, _ value: inout [UInt8]) {
        add(number, name, PROTOBUF_C_TYPE_BYTES)
    }
    mutating func enumeration<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ value: inout E) {
        add(number, name, PROTOBUF_C_TYPE_ENUM, typeName: "\(E.self)")
    }
    mutating func message<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        add(number, name, PROTOBUF_C_TYPE_MESSAGE, typeName: M.messageName)
        messages.append(M.self)
    }
    mutating func oneof(_: UInt32, is _: UInt32) -> UInt32? { nil }
    mutating func oneofMessage<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        add(number, name, PROTOBUF_C_TYPE_MESSAGE, isInOneof: true, typeName: M.messageName)
        messages.append(M.self)
    }
    mutating func strings(_ number: UInt32, _ name: StaticString, _ values: inout [String]) {
        add(number, name, PROTOBUF_C_TYPE_STRING, isRepeated: true)
    }
    mutating func enumerations<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ values: inout [E]) {
        add(number, name, PROTOBUF_C_TYPE_ENUM, isRepeated: true, typeName: "\(E.self)")
    }
    mutating func messages<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ values: inout [M]) {
        add(number, name, PROTOBUF_C_TYPE_MESSAGE, isRepeated: true, typeName: M.messageName)
        messages.append(M.self)
    }

    private mutating func add(
        _ number: UInt32, _ name: StaticString, _ type: ProtobufCType, isRepeated: Bool = false,
        isInOneof: Bool = false, typeName: String = ""
    ) {
        count += 1
        fields.insert(
            Field(
                number: number, name: name.description, type: type.rawValue, isRepeated: isRepeated,
                isInOneof: isInOneof, typeName: typeName))
    }
}

@Suite("The schema and its Swift side")
struct DescriptorTests {
    @Test("the Swift side of every message lists exactly the fields of the C side")
    func everyField() {
        for type in allMessages { compare(type) }
    }

    private func compare<M: WireMessage>(_ type: M.Type) {
        let descriptor = M.descriptor.pointer.assumingMemoryBound(to: ProtobufCMessageDescriptor.self).pointee
        #expect(String(cString: descriptor.name) == M.messageName)
        var list = FieldList()
        var message = M()
        message.fields(&list)
        #expect(list.count == Int(descriptor.n_fields), "\(M.messageName)")
        let fields = UnsafeBufferPointer(start: descriptor.fields, count: Int(descriptor.n_fields))
        #expect(list.fields == Set(fields.map { Self.field($0) }), "\(M.messageName)")
        for field in fields {
            #expect(
                field.label == PROTOBUF_C_LABEL_NONE || field.label == PROTOBUF_C_LABEL_REPEATED,
                "\(M.messageName).\(String(cString: field.name)) is optional or required; the schema has no presence"
            )
        }
    }

    private static func field(_ field: ProtobufCFieldDescriptor) -> FieldList.Field {
        var result = FieldList.Field(
            number: field.id, name: String(cString: field.name), type: field.type.rawValue,
            isRepeated: field.label == PROTOBUF_C_LABEL_REPEATED,
            isInOneof: field.flags & PROTOBUF_C_FIELD_FLAG_ONEOF.rawValue != 0)
        if let type = field.descriptor, field.type == PROTOBUF_C_TYPE_MESSAGE {
            result.typeName = String(
                cString: type.assumingMemoryBound(to: ProtobufCMessageDescriptor.self).pointee.name)
        } else if let type = field.descriptor, field.type == PROTOBUF_C_TYPE_ENUM {
            result.typeName = String(
                cString: type.assumingMemoryBound(to: ProtobufCEnumDescriptor.self).pointee.short_name)
        }
        return result
    }

    @Test("no message contains itself, however indirectly")
    func noCycles() {
        for type in allMessages { visit(type, below: []) }
    }

    private func visit<M: WireMessage>(_ type: M.Type, below: [String]) {
        guard !below.contains(M.messageName) else {
            Issue.record("\((below + [M.messageName]).joined(separator: " > "))")
            return
        }
        var list = FieldList()
        var message = M()
        message.fields(&list)
        #expect(below.count < WireLimits.request.maximumDepth)
        for each in list.messages { visit(each, below: below + [M.messageName]) }
    }

    @Test("the catalogue has every message, enum and method of proto/")
    func catalogue() throws {
        let directory = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../proto")
        let files = try #require(
            FileManager.default.enumerator(at: directory, includingPropertiesForKeys: nil))
        var messages: [String] = []
        var enums: [String] = []
        var methods: [String] = []
        for case let file as URL in files where file.pathExtension == "proto" {
            var package = ""
            var service = ""
            for line in try String(contentsOf: file, encoding: .utf8).split(separator: "\n") {
                let words = line.split { " ;(){}".contains($0) }.map(String.init)
                guard words.count >= 2 else { continue }
                switch words[0] {
                case "package": package = words[1]
                case "message": messages.append("\(package).\(words[1])")
                case "enum": enums.append(words[1])
                case "service": service = words[1]
                case "rpc": methods.append("\(package).\(service)/\(words[1])")
                default: break
                }
            }
        }
        #expect(messages.count > 30)
        #expect(Set(WireCatalogue.messages.map { $0.messageName }) == Set(messages))
        #expect(Set(WireCatalogue.enums.map { "\($0)" }) == Set(enums))
        #expect(Set(WireCatalogue.methods) == Set(methods))
    }

    @Test("every enum has a zero, and names that lead back to their values")
    func enums() {
        for type in WireCatalogue.enums + TestCatalogue.enums { check(type) }
        #expect(StatusCode.internal.name == "internal")
        #expect(JobResult(jsonName: "completed_with_errors") == .completedWithErrors)
        #expect(JobResult(jsonName: "COMPLETED") == nil)
        #expect(SyncMode().isUnspecified && !StatusCode.ok.isUnspecified)
    }

    private func check<E: WireEnum>(_ type: E.Type) {
        #expect(E(rawValue: 0).isKnown)
        for value in E.allCases { #expect(E(jsonName: value.name) == value) }
    }

    @Test("methods know their names and whether they stream")
    func methods() {
        #expect(BackupsMethods.start.name == "drivebackup.v1.Backups/Start")
        #expect(BackupsMethods.start.isServerStreaming)
        #expect(JobsMethods.setSpeed.name == "drivebackup.v1.Jobs/SetSpeed")
        #expect(!JobsMethods.setSpeed.isServerStreaming)
    }
}
