"""The text that weighs a copy's errors where the user gives none: some of each kind of text that models are asked for."""

TEXT = """The river that runs through our valley is only forty kilometres long, but it has turned eleven mills, and the oldest \
of them still grinds flour on Saturdays. "Water is a good servant," the miller used to say, "as long as you ask it politely."

Question: What is the boiling point of water, and why does it change in the mountains?
Answer: At sea level, water boils at 100 degrees Celsius (212 °F). Higher up there is less air above us, so the pressure is \
lower. On a mountain of 3,000 metres it boils at about 90 degrees.

1. Wash the lentils and let them drain.
2. Chop one onion and two carrots, and fry them in olive oil for five minutes.

```python
def count_words(path, least=3):
    \"\"\"Return a dictionary of the words in a file and how often each occurs.\"\"\"
    counts = {}
    with open(path, encoding="utf-8") as file:
        for word in file.read().lower().split():
            if len(word) >= least:
                counts[word] = counts.get(word, 0) + 1
    return counts
```

To solve 4x - 6 = 2x + 10, subtract 2x from both sides: 2x - 6 = 10. Add 6 to both sides: 2x = 16. Therefore, x = 8.

Die Stadt liegt an einem kleinen See. Les enfants jouent dans le jardin. El tren sale a las ocho y media. 今天天气很好。 \
Сегодня открылась новая библиотека.

Dear Ms. Hughes,

Thank you for your letter of 3 May. I am sorry that the parcel arrived damaged. We will send you a new one at no cost.

{"name": "Lena", "age": 34, "languages": ["Danish", "English"]}

In summary, the study found that people who slept eight hours remembered 20% more words. However, the groups were small, and \
further research is needed.

User: I feel nervous about my job interview tomorrow. Do you have any advice?
Assistant: It's natural to feel nervous! Here are a few things that may help:

- **Prepare:** Read about the company and think of two questions.
- **Rest:** Go to bed early, and leave home with time to spare.

Remember that the interview is a conversation: you are also finding out whether the job is right for you. Good luck!
"""
