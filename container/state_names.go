package container

import (
	"errors"
	"math/rand/v2"
)

// Names for those who give none: an adjective and somebody who made computing what it is.
var (
	nameHow = []string{
		"able", "agile", "amber", "bold", "brave", "bright", "brisk", "calm", "clever", "crisp", "curious", "daring",
		"eager", "early", "fair", "fearless", "fine", "fond", "gentle", "glad", "happy", "honest", "humble", "jolly",
		"keen", "kind", "lively", "lucid", "merry", "mild", "nimble", "noble", "patient", "placid", "plucky", "proud",
		"quick", "quiet", "rapid", "serene", "sharp", "sincere", "smart", "steady", "sunny", "tender", "vivid", "warm",
		"wise", "witty", "zealous", "zen",
	}
	nameWho = []string{
		"allen", "babbage", "bartik", "boole", "chomsky", "church", "conway", "curry", "dahl", "dijkstra", "engelbart",
		"floyd", "goldberg", "gray", "hamilton", "hamming", "hoare", "holberton", "hopper", "huffman", "jackson", "kahan",
		"karp", "kay", "kernighan", "kildall", "kleene", "knuth", "lamport", "lampson", "liskov", "lovelace", "mccarthy",
		"meyer", "milner", "moore", "naur", "neumann", "nygaard", "perlis", "perlman", "postel", "rabin", "ritchie",
		"scott", "shannon", "strachey", "tanenbaum", "tarjan", "thompson", "turing", "wilkes", "wirth", "zuse",
	}
)

// takeAnyName gives a container a free name. The store's lock is held.
func (s *Store) takeAnyName(r *Record) error {
	for tries := 0; ; tries++ {
		name := nameHow[rand.IntN(len(nameHow))] + "_" + nameWho[rand.IntN(len(nameWho))]
		if tries > 20 {
			name += "_" + r.ID[:6] // most are taken
		}
		err := s.takeName(name, r.ID)
		if errors.Is(err, ErrNameTaken) && tries < 30 {
			continue
		}
		r.Name = name
		return err
	}
}
