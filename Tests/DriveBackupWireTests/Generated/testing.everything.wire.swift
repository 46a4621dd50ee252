// swift-format-ignore-file
// Generated from proto/testing/everything.proto by tools/generate. Never edited by hand.

internal import CWireTesting
public import DriveBackupWire

/// `testing.Colour`.
public struct Colour: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    public static let unspecified = Self(rawValue: 0)
    public static let red = Self(rawValue: 1)
    public static let `default` = Self(rawValue: 2)
    public static let negative = Self(rawValue: -5)

    public static let allCases: [Self] = [
        .unspecified,
        .red,
        .`default`,
        .negative,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "red"
        case 2: "default"
        case -5: "negative"
        default: nil
        }
    }
}

/// Every kind of field, out of order, with numbers of one to five bytes.
public struct Everything: WireMessage {
    /// What `choice` of `Everything` can be.
    public enum Choice: Sendable, Hashable {
        case left(Leaf)
        case right(Branch)
    }

    public var truth: Bool = false
    public var small: Int32 = 0
    public var large: Int64 = 0
    public var smallUnsigned: UInt32 = 0
    public var largeUnsigned: UInt64 = 0
    public var fixed: UInt64 = 0
    public var text: String = ""
    public var data: [UInt8] = []
    public var colour: Colour = .unspecified
    public var leaf: Leaf? = nil
    public var texts: [String] = []
    public var colours: [Colour] = []
    public var leaves: [Leaf] = []
    public var choice: Choice? = nil
    /// A word that Swift keeps for itself.
    public var `default`: String = ""

    public init() {}

    public init(
        truth: Bool = false,
        small: Int32 = 0,
        large: Int64 = 0,
        smallUnsigned: UInt32 = 0,
        largeUnsigned: UInt64 = 0,
        fixed: UInt64 = 0,
        text: String = "",
        data: [UInt8] = [],
        colour: Colour = .unspecified,
        leaf: Leaf? = nil,
        texts: [String] = [],
        colours: [Colour] = [],
        leaves: [Leaf] = [],
        choice: Choice? = nil,
        `default`: String = ""
    ) {
        self.truth = truth
        self.small = small
        self.large = large
        self.smallUnsigned = smallUnsigned
        self.largeUnsigned = largeUnsigned
        self.fixed = fixed
        self.text = text
        self.data = data
        self.colour = colour
        self.leaf = leaf
        self.texts = texts
        self.colours = colours
        self.leaves = leaves
        self.choice = choice
        self.`default` = `default`
    }

    public static let messageName = "testing.Everything"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_testing_everything())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.bool(1, "truth", &truth)
        coder.int32(3, "small", &small)
        coder.int64(2, "large", &large)
        coder.uint32(4, "small_unsigned", &smallUnsigned)
        coder.uint64(16, "large_unsigned", &largeUnsigned)
        coder.fixed64(17, "fixed", &fixed)
        coder.string(2047, "text", &text)
        coder.bytes(2048, "data", &data)
        coder.enumeration(536870911, "colour", &colour)
        coder.message(20, "leaf", &leaf)
        coder.strings(21, "texts", &texts)
        coder.enumerations(22, "colours", &colours)
        coder.messages(23, "leaves", &leaves)
        let _choiceNumber = coder.oneof(24, is: _choiceNumber)
        if _choiceNumber ?? 24 == 24 {
            coder.oneofMessage(24, "left", &left)
        }
        if _choiceNumber ?? 25 == 25 {
            coder.oneofMessage(25, "right", &right)
        }
        coder.string(26, "default", &`default`)
    }

    /// The number of the field that `choice` is; 0 for none.
    private var _choiceNumber: UInt32 {
        switch choice {
        case .left?: 24
        case .right?: 25
        case nil: 0
        }
    }

    /// `choice` if it is `left`. Setting nil clears it only if it is that.
    public var left: Leaf? {
        get {
            if case .left(let value)? = choice { value } else { nil }
        }
        set {
            if let newValue {
                choice = .left(newValue)
            } else if case .left? = choice {
                choice = nil
            }
        }
    }

    /// `choice` if it is `right`. Setting nil clears it only if it is that.
    public var right: Branch? {
        get {
            if case .right(let value)? = choice { value } else { nil }
        }
        set {
            if let newValue {
                choice = .right(newValue)
            } else if case .right? = choice {
                choice = nil
            }
        }
    }
}

/// `testing.Leaf`.
public struct Leaf: WireMessage {
    public var id: String = ""
    public var value: Int64 = 0

    public init() {}

    public init(
        id: String = "",
        value: Int64 = 0
    ) {
        self.id = id
        self.value = value
    }

    public static let messageName = "testing.Leaf"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_testing_leaf())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "id", &id)
        coder.int64(2, "value", &value)
    }
}

/// `testing.Branch`.
public struct Branch: WireMessage {
    /// What `one` of `Branch` can be.
    public enum One: Sendable, Hashable {
        case only(Leaf)
    }

    public var leaves: [Leaf] = []
    public var leaf: Leaf? = nil
    public var one: One? = nil

    public init() {}

    public init(
        leaves: [Leaf] = [],
        leaf: Leaf? = nil,
        one: One? = nil
    ) {
        self.leaves = leaves
        self.leaf = leaf
        self.one = one
    }

    public static let messageName = "testing.Branch"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_testing_branch())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.messages(1, "leaves", &leaves)
        coder.message(2, "leaf", &leaf)
        let _oneNumber = coder.oneof(3, is: _oneNumber)
        if _oneNumber ?? 3 == 3 {
            coder.oneofMessage(3, "only", &only)
        }
    }

    /// The number of the field that `one` is; 0 for none.
    private var _oneNumber: UInt32 {
        switch one {
        case .only?: 3
        case nil: 0
        }
    }

    /// `one` if it is `only`. Setting nil clears it only if it is that.
    public var only: Leaf? {
        get {
            if case .only(let value)? = one { value } else { nil }
        }
        set {
            if let newValue {
                one = .only(newValue)
            } else if case .only? = one {
                one = nil
            }
        }
    }
}

/// `testing.Nothing`.
public struct Nothing: WireMessage {
    public init() {}

    public static let messageName = "testing.Nothing"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_testing_nothing())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
    }
}
