import DriveBackupClient

// The agent has types of the same names; in tests that speak for a client the wire's are meant.
typealias WireEvent = DriveBackupWire.JobEvent
typealias WireState = DriveBackupWire.JobState
typealias WireJob = DriveBackupWire.Job
