// Package snapshot keeps immutable file trees and their differences.
package snapshot
