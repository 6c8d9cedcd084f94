package recipe

// Vars is an ordered set of variables. A nil *Vars is empty. A variable that is
// set again moves to the end, as in BuildKit's environment of a step.
//
// Every operation takes the same time however many variables there are: a recipe
// of thousands of ENVs is planned in time that grows with its length.
type Vars struct {
	slots []slot
	at    map[string]int // name → its slot
}

// slot is a place in the order; a gone one has no name in at.
type slot struct {
	Pair
	gone bool
}

// NewVars takes the form of an image's Env: KEY=value; a later one wins.
func NewVars(list []string) *Vars {
	v := &Vars{}
	for _, kv := range list {
		v.Set(cut(kv))
	}
	return v
}

// Get tells the value of a variable and whether it is set.
func (v *Vars) Get(key string) (string, bool) {
	if v == nil {
		return "", false
	}
	i, ok := v.at[key]
	if !ok {
		return "", false
	}
	return v.slots[i].Value, true
}

// Set sets a variable.
func (v *Vars) Set(key, value string) {
	v.Unset(key)
	if v.at == nil {
		v.at = map[string]int{}
	}
	v.at[key] = len(v.slots)
	v.slots = append(v.slots, slot{Pair: Pair{key, value}})
}

// Unset removes a variable.
func (v *Vars) Unset(key string) {
	i, ok := v.at[key]
	if !ok {
		return
	}
	v.slots[i] = slot{gone: true}
	delete(v.at, key)
	if len(v.slots) > 2*len(v.at)+16 {
		*v = *v.Clone()
	}
}

// replace sets a variable where it stands: the order of an image's Env.
func (v *Vars) replace(key, value string) {
	if i, ok := v.at[key]; ok {
		v.slots[i].Value = value
		return
	}
	v.Set(key, value)
}

// pairs lists the variables in order.
func (v *Vars) pairs() []Pair {
	if v == nil {
		return nil
	}
	list := make([]Pair, 0, len(v.at))
	for _, s := range v.slots {
		if !s.gone {
			list = append(list, s.Pair)
		}
	}
	return list
}

// Keys lists the names in order.
func (v *Vars) Keys() []string {
	var keys []string
	for _, p := range v.pairs() {
		keys = append(keys, p.Key)
	}
	return keys
}

// List gives KEY=value in order.
func (v *Vars) List() []string {
	var list []string
	for _, p := range v.pairs() {
		list = append(list, p.Key+"="+p.Value)
	}
	return list
}

// Clone gives a copy that changes on its own.
func (v *Vars) Clone() *Vars {
	c := &Vars{}
	for _, p := range v.pairs() {
		c.Set(p.Key, p.Value)
	}
	return c
}
